"""The BIDS derivative that masks lie in: names, what made them from what, and what another made and is not replaced."""

import hashlib
import json
import os
from contextlib import ExitStack
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.files import replace_file, sha256

NAME = "MeshNet stroke lesion segmentation"  # what this bundle, from 0.4.0 on, makes is known by it
MASK, PICTURE, PROBABILITY, SIDECAR = "mask.nii.gz", "qc.png", "probseg.nii.gz", "mask.json"
UNCERTAINTY = "uncertainty_probseg.nii.gz"  # all others are of the lesion
OUTPUTS = (MASK, PICTURE, PROBABILITY, UNCERTAINTY, SIDECAR)
DESCRIPTION, TABLE, LEGEND = "dataset_description.json", "lesions.tsv", "lesions.json"
ABOUT_ALL = {"Name": "Stroke lesion masks by MeshNet", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
ABOUT_MASK = {"Description": "1 where the network finds a chronic stroke lesion", "Type": "Lesion"}


class Derivative:
    """The masks that the weights of ``members`` make under ``settings``.

    Each lies in the subfolder of ``output_dir`` that its scan has in ``input_root``; paths of scans are absolute.
    """

    def __init__(self, input_root: str, output_dir: str, members: list[str], settings: dict) -> None:
        self.root, self.folder = Path(input_root).absolute(), Path(output_dir).absolute()
        above = (folder for folder in (self.root, *self.root.parents) if (folder / DESCRIPTION).is_file())
        self.dataset = next(above, self.root)  # that sources are named in
        version = json.loads((Path(__file__).parents[2] / "metadata.json").read_text())["version"]
        named = {"Weights": [Path(path).name for path in members], "WeightsSHA256": [sha256(path) for path in members]}
        weights = {key: values[0] if len(values) == 1 else values for key, values in named.items()}
        self.made_by = {"Name": NAME, "Version": version, **weights, "Settings": settings}

    def refuse_foreign_files(self) -> None:
        """Raise InputError if the folder is described by files that this bundle did not make, as a raw dataset is."""
        there = [path for name in (DESCRIPTION, TABLE, LEGEND) if os.path.lexists(path := self.folder / name)]
        if there and read_ours(self.folder / DESCRIPTION) is None:
            lines = (f"{path}: not made by this bundle, so not replaced; give another --output_dir" for path in there)
            raise InputError("\n".join(lines))

    def write_description(self) -> None:
        """Write ``dataset_description.json``, and ``.bidsignore`` for what BIDS has no name for."""
        raw = Path(os.path.relpath(self.dataset, self.folder)).as_posix()
        description = {**ABOUT_ALL, "GeneratedBy": [self.made_by], "DatasetLinks": {"raw": raw}}
        with replace_file(self.folder / DESCRIPTION, unique=True) as file:  # others may write here at the same time
            file.write(json.dumps(description, indent=4) + "\n")
        if not (self.folder / ".bidsignore").exists():
            with replace_file(self.folder / ".bidsignore", unique=True) as file:
                file.write(f"*_{PICTURE}\n{TABLE}\n{LEGEND}\n")

    def path(self, scan: str, output: str) -> Path:
        """For ``sub-1/anat/sub-1_T2w.nii.gz`` and ``mask.nii.gz``: ``sub-1/anat/sub-1_desc-lesion_mask.nii.gz``."""
        described = output if output == UNCERTAINTY else f"lesion_{output}"
        return self.folder / Path(scan).parent.relative_to(self.root) / f"{stem(Path(scan))}_desc-{described}"

    def is_done(self, scan: str, wanted: list[str]) -> bool:
        """Whether all ``wanted`` outputs are there, made of this content by these weights and settings."""
        sidecar = read_ours(self.path(scan, SIDECAR)) or {}
        made_of = sidecar.get("GeneratedBy"), sidecar.get("SourceSHA256")
        return made_of == ([self.made_by], sha256(scan)) and all(self.path(scan, out).is_file() for out in wanted)

    def refusals(self, scan: str) -> list[str]:
        """A line if the outputs of ``scan`` would replace what another made, or changed since this bundle made it."""
        there = [path for output in OUTPUTS if os.path.lexists(path := self.path(scan, output))]
        sidecar, mask = read_ours(self.path(scan, SIDECAR)), self.path(scan, MASK)
        ours = sidecar and (mask not in there or sidecar.get("MaskSHA256") in (None, sha256(mask)))  # None: by 0.4.0
        if ours or not there:
            return []
        why = "was changed by hand" if sidecar else "not made by this bundle"
        return [f"{there[0]}: {why}, so not replaced; move it, or give another --output_dir"]

    def write(self, scan: str, scan_sha256: str, lesions: dict, files: dict[str, bytes]) -> None:
        """Write ``files``, the content of each output, and the sidecar; what is there of other settings goes.

        All are written before the first takes its name: the old mask goes, the sidecar comes, the mask comes last. So a
        full disk changes nothing, and after a kill no sidecar stands beside a mask that it does not describe.
        """
        source = f"bids:raw:{Path(scan).relative_to(self.dataset).as_posix()}"
        hashes = {"SourceSHA256": scan_sha256, "MaskSHA256": hashlib.sha256(files[MASK]).hexdigest()}
        sidecar = {**ABOUT_MASK, "Sources": [source], "SpatialReference": source, "GeneratedBy": [self.made_by]}
        text = json.dumps({**sidecar, **hashes, "Lesions": lesions}, indent=4) + "\n"
        with ExitStack() as stack:  # it puts them in place from the last to the first
            for output, content in {MASK: b"", **files, SIDECAR: text.encode()}.items():
                file = stack.enter_context(replace_file(self.path(scan, output), "wb"))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # here, where a full disk still changes nothing
            for output in [MASK] if self.is_done(scan, []) else OUTPUTS:
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
