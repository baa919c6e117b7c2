"""The BIDS derivative that masks lie in: names, what made them from what, and what another made and is not replaced."""

import hashlib
import json
import os
from contextlib import ExitStack
from pathlib import Path

from scripts.common.files import replace_file
from scripts.common.json_file import check_json
from scripts.networks.weights import CARD

NAME = "MeshNet stroke lesion segmentation"  # what this bundle, from 0.4.0 on, makes is known by it
MASK, PICTURE, PROBABILITY, SIDECAR = OUTPUTS = ("mask.nii.gz", "qc.png", "probseg.nii.gz", "mask.json")
DESCRIPTION = "dataset_description.json"
METADATA = Path(__file__).resolve().parents[2] / "metadata.json"


class Derivative:
    """The masks of some weights, with what belongs to each; ``sidecar["GeneratedBy"]`` says whose they are.

    Args:
        input_root: the folder below which outputs have the subfolders of their scans.
        output_dir: the folder of the derivative.
        ckpt_path: the weights.
        settings: what else decides a mask.

    Raises:
        InputError: a setting out of its range.
    """

    def __init__(self, input_root: str, output_dir: str, ckpt_path: str, settings: dict) -> None:
        check_json("inference.json", settings, {"properties": CARD["properties"]}, "see docs/segmenting.md")
        self.root, self.folder = Path(input_root).absolute(), Path(output_dir).absolute()
        above = [folder for folder in (self.root, *self.root.parents) if (folder / DESCRIPTION).is_file()]
        self.dataset = above[0] if above else self.root  # that sources are named in
        self.made_by = {
            "Name": NAME,
            "Version": json.loads(METADATA.read_text())["version"],
            "Weights": Path(ckpt_path).name,
            "WeightsSHA256": sha256(Path(ckpt_path)),
            "Settings": settings,
        }

    def path(self, scan: str, output: str) -> Path:
        """For ``sub-1/anat/sub-1_T2w.nii.gz`` and ``mask.nii.gz``: ``sub-1/anat/sub-1_desc-lesion_mask.nii.gz``."""
        path = Path(scan).absolute()
        return self.folder / path.parent.relative_to(self.root) / f"{stem(path)}_desc-lesion_{output}"

    def is_done(self, scan: str, wanted: list[str]) -> bool:
        """Whether all ``wanted`` outputs are there, made of this content by these weights and settings."""
        sidecar = read_ours(self.path(scan, SIDECAR)) or {}
        there = all(self.path(scan, output).is_file() for output in wanted)
        same = there and sidecar.get("GeneratedBy") == [self.made_by]
        return same and sidecar.get("SourceSHA256") == sha256(Path(scan))

    def refusals(self, scan: str) -> list[str]:
        """A line if the outputs of ``scan`` would replace what another made, or changed since this bundle made it."""
        sidecar, mask = read_ours(self.path(scan, SIDECAR)), self.path(scan, MASK)
        there = [path for output in OUTPUTS if os.path.lexists(path := self.path(scan, output))]
        if there and sidecar is None:
            return [f"{there[0]}: not made by this bundle, so not replaced; move it, or give another --output_dir"]
        if there and mask.is_file() and sidecar.get("MaskSHA256", sha256(mask)) != sha256(mask):
            return [f"{mask}: was changed by hand, so not replaced; move it, or give another --output_dir"]
        return []

    def write(self, scan: str, scan_sha256: str, lesions: dict, files: dict[str, bytes]) -> None:
        """Write ``files``, the content of each output, and the sidecar; what is there of other settings goes.

        All are written before the first takes its name: the old mask goes, the sidecar comes, the mask comes last. So a
        full disk changes nothing, and after a kill no sidecar stands beside a mask that it does not describe.
        """
        source = f"bids:raw:{Path(scan).absolute().relative_to(self.dataset).as_posix()}"
        sidecar = {
            "Description": "1 where the network finds a chronic stroke lesion",
            "Type": "Lesion",
            "Sources": [source],
            "SpatialReference": source,
            "SourceSHA256": scan_sha256,
            "MaskSHA256": hashlib.sha256(files[MASK]).hexdigest(),
            "GeneratedBy": [self.made_by],
            "Lesions": lesions,
        }
        files = {**files, SIDECAR: (json.dumps(sidecar, indent=4) + "\n").encode()}
        old = read_ours(self.path(scan, SIDECAR)) or {}
        stale = any(old.get(key) != sidecar[key] for key in ("GeneratedBy", "SourceSHA256"))
        with ExitStack() as stack:
            for output in [output for output in OUTPUTS if output in files]:
                file = stack.enter_context(replace_file(self.path(scan, output), "wb"))
                file.write(files[output])
                file.flush()
                os.fsync(file.fileno())  # here, where a full disk still changes nothing
            for output in (MASK, *[other for other in OUTPUTS if stale and other not in files]):
                self.path(scan, output).unlink(missing_ok=True)


def stem(scan: Path) -> str:
    """What the names of a scan's outputs begin with."""
    return scan.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_T2w")


def read_ours(path: Path) -> dict | None:
    """The JSON at ``path``, or None where there is none or this bundle did not make it."""
    try:
        content = json.loads(path.read_text())
        return content if any(maker["Name"] == NAME for maker in content["GeneratedBy"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sha256(path: Path) -> str:
    """Of the content of the file at ``path``; empty where it cannot be read, which is reported with the scans."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
