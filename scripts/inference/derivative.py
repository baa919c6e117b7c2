"""The BIDS derivative that masks lie in: names, what made them from what, and what another made and is not replaced."""

import hashlib
import json
import os
import random
import tempfile
import time
from pathlib import Path

import torch

from scripts.common.errors import InputError
from scripts.common.files import replace_file, replace_files, sha256
from scripts.data.volume_files import is_utf8, stem

NAME = "MeshNet stroke lesion segmentation"  # what this bundle, from 0.4.0 on, makes is known by it
METHOD = 2  # counted up when the same weights and settings would draw other masks, which are then made again
MASK, PICTURE, PROBABILITY = (f"desc-lesion_{end}" for end in ("mask.nii.gz", "qc.png", "probseg.nii.gz"))
UNCERTAINTY, LABELS = "desc-uncertainty_probseg.nii.gz", "dseg.nii.gz"
DESCRIPTION, TABLE, LEGEND, FAILURES = "dataset_description.json", "lesions.tsv", "lesions.json", "failures.tsv"
# What BIDS has no name for.
IGNORED = ("*_qc.png", "*_xfm.*", "*_roi.nii.gz", TABLE, LEGEND, FAILURES, "logs/", "group/")
ABOUT_ALL = {"Name": "Segmentations by MeshNet", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
ABOUT = {
    MASK: {"Description": "1 where the network finds a chronic stroke lesion", "Type": "Lesion"},
    LABELS: {"Description": "The class of each voxel, as the weights number them"},
}


class Derivative:
    """What the weights of ``members`` make under ``settings``: masks, or maps of ``LABELS``.

    Each lies in the subfolder of ``output_dir`` that its scan has in ``input_root``; paths of scans are absolute.
    Sidecars say besides on which ``device`` and in which ``precision`` (None: float32) it was computed.

    Raises:
        InputError: the path of ``output_dir`` is not UTF-8.
    """

    def __init__(
        self, input_root: str, output_dir: str, members: list[str], settings: dict, made: str = MASK,
        device: object = None, precision: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.root, self.folder = (Path(os.path.abspath(path)) for path in (input_root, output_dir))
        if not is_utf8(self.folder):
            raise InputError(f"output_dir {output_dir}: its path is not UTF-8; give another --output_dir")
        self.made, self.sidecar = made, made.replace(".nii.gz", ".json")
        self.outputs = (MASK, PICTURE, PROBABILITY, UNCERTAINTY) if made == MASK else (made,)
        version = json.loads((Path(__file__).parents[2] / "configs" / "metadata.json").read_text())["version"]
        named = {"Weights": [Path(path).name for path in members], "WeightsSHA256": [sha256(path) for path in members]}
        weights = {key: values[0] if len(values) == 1 else values for key, values in named.items()}
        computed = {"Device": str(device), "Precision": str(precision or torch.float32).removeprefix("torch.")}
        self.made_by = {"Name": NAME, "Version": version, "Method": METHOD, **weights, "Settings": settings, **computed}

    def claim(self) -> None:
        """Make the folder; raise InputError if nothing can be written there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}); give another --output_dir"
            ) from error

    def write_description(self) -> None:
        """Write ``dataset_description.json``, and ``.bidsignore`` for what BIDS has no name for."""
        raw = Path(os.path.relpath(self.root, self.folder)).as_posix()
        description = {**ABOUT_ALL, "GeneratedBy": [self.made_by], "DatasetLinks": {"raw": raw}}
        with replace_file(self.folder / DESCRIPTION) as file:
            file.write(json.dumps(description, indent=4) + "\n")
        path = self.folder / ".bidsignore"
        there = path.read_bytes().splitlines() if path.exists() else []  # of an older version, or people's own
        if missing := [line for name in IGNORED if (line := name.encode()) not in there]:
            with replace_file(path, "wb") as file:
                file.write(b"\n".join([*there, *missing, b""]))

    def path(self, scan: str, output: str) -> Path:
        """For ``sub-1/anat/sub-1_T2w.nii.gz`` and ``MASK``: ``sub-1/anat/sub-1_desc-lesion_mask.nii.gz``."""
        return self.folder / Path(scan).parent.relative_to(self.root) / f"{name_of(Path(scan))}_{output}"

    def is_done(self, scan: str, wanted: list[str]) -> bool:
        """Whether all ``wanted`` outputs are there, made of this content by these weights, settings and method.

        The picture of a mask that was changed by hand since is not there.
        """
        sidecar = self._sidecar(scan)
        if not all(self.path(scan, output).is_file() for output in wanted) or not self._is_by_us(sidecar, scan):
            return False
        shown = sidecar.get("PictureSHA256", sidecar.get("MaskSHA256"))
        return PICTURE not in wanted or shown == sha256(self.path(scan, MASK))

    def is_changed(self, scan: str) -> bool:
        """Whether the mask, or map, that this bundle made of ``scan`` was changed since."""
        return is_changed(self._sidecar(scan), self.path(scan, self.made))

    def refusals(self, scan: str) -> list[str]:
        """A line if the outputs of ``scan`` would replace what another made or changed, or those of another scan."""
        there = [path for out in (*self.outputs, self.sidecar) if os.path.lexists(path := self.path(scan, out))]
        sidecar = self._sidecar(scan)
        if not there:
            return []
        if not sidecar:
            why = "not made by this bundle"
        elif self._is_of_another(sidecar, scan):
            why = f"is of another scan, {source_of(sidecar)}"
        elif self.is_changed(scan) and not self._is_by_us(sidecar, scan):
            why = "was changed by hand"
        else:
            return []
        return [f"{there[0]}: {why}, so not replaced; move it, or give another --output_dir"]

    def write(self, scan: str, scan_sha256: str, about: dict, files: dict[str, bytes]) -> None:
        """Write ``files``, the content of each output, and the sidecar; what is there of other settings goes.

        First the old mask goes, then the sidecar comes, and the mask last, so that after a kill no sidecar stands
        beside a mask that it does not describe. Without a mask in ``files``, the one that was changed by hand stays.
        """
        made, names = self.path(scan, self.made), [self.sidecar, *({*files} - {self.made}), self.made]
        if self.made not in files:
            changed = {"PictureSHA256": sha256(made)} if PICTURE in files else {}
            text, names, old = json.dumps(self._sidecar(scan) | changed, indent=4), names[:-1], []
        else:
            source = f"bids:raw:{Path(scan).relative_to(self.root).as_posix()}"
            sidecar = {**ABOUT[self.made], "Sources": [source], "SpatialReference": source}
            hashes = {"SourceSHA256": scan_sha256, "SourcePathSHA256": self._place(scan)}
            hashes["MaskSHA256"] = hashlib.sha256(files[self.made]).hexdigest()
            text = json.dumps({**sidecar, "GeneratedBy": [self.made_by], **hashes, **about}, indent=4)
            old = [self.made] if self.is_done(scan, []) else self.outputs
        for _ in range(20):  # another process may write the same scan: whoever is last puts it right
            places = [[self.path(scan, name) for name in part] for part in (names, old)]
            with replace_files(places[0], "wb", places[1]) as opened:
                for name, file in zip(names, opened, strict=True):
                    file.write(files[name] if name in files else f"{text}\n".encode())
            if self.made not in files or not self.is_changed(scan):
                break
            time.sleep(random.uniform(0, 0.2))

    def _sidecar(self, scan: str) -> dict:
        return read_ours(self.path(scan, self.sidecar)) or {}

    def _place(self, scan: str) -> str:
        """A hash of where ``scan`` lies, seen from here: sidecars hold no path of this machine."""
        return hashlib.sha256(os.fsencode(os.path.relpath(scan, self.folder))).hexdigest()

    def _is_by_us(self, sidecar: dict, scan: str) -> bool:
        """Whether these weights, settings and this method made what ``sidecar`` describes, of the scan as it is now."""
        maker, keys = sidecar.get("GeneratedBy", [{}])[0], ("Method", "WeightsSHA256", "Settings")
        return all(maker.get(key) == self.made_by[key] for key in keys) and sidecar.get("SourceSHA256") == sha256(scan)

    def _is_of_another(self, sidecar: dict, scan: str) -> bool:
        """Whether ``sidecar`` is of a scan of another place and another content."""
        links = (read_ours(self.folder / DESCRIPTION) or {}).get("DatasetLinks", {})
        before = str(self.folder / links.get("raw", "") / source_of(sidecar).removeprefix("bids:raw:"))  # of 0.14.0
        there = sidecar.get("SourcePathSHA256") or self._place(before)
        return "SourceSHA256" in sidecar and there != self._place(scan) and sidecar["SourceSHA256"] != sha256(scan)


def refuse_foreign_files(folder: Path) -> None:
    """Raise InputError if a folder is described by files that this bundle did not make, as a raw dataset is."""
    there = [path for name in (DESCRIPTION, TABLE, LEGEND) if os.path.lexists(path := folder / name)]
    if there and read_ours(folder / DESCRIPTION) is None:
        lines = (f"{path}: not made by this bundle, so not replaced; give another --output_dir" for path in there)
        raise InputError("\n".join(lines))


def refuse_other_dataset(folder: Path, root: Path) -> None:
    """Raise InputError if a folder is another's, or holds masks of a dataset that is there and is not ``root``."""
    refuse_foreign_files(folder)
    raw = (read_ours(folder / DESCRIPTION) or {}).get("DatasetLinks", {}).get("raw")
    if raw and (folder / raw).is_dir() and not (folder / raw).samefile(root):
        raise InputError(f"{folder}: holds masks of {os.path.abspath(folder / raw)}; give another output folder")


def name_of(scan: Path) -> str:
    """What the names of a scan's outputs begin with."""
    return stem(scan.name).removesuffix("_T2w")


def is_changed(sidecar: dict, mask: Path) -> bool:
    """Whether the ``mask`` of ``sidecar`` is there and another than the one that it describes; 0.4.0 did not say."""
    then, now = sidecar.get("MaskSHA256"), sha256(mask)
    return then not in (None, now) and mask.exists()  # one that cannot be read is not replaced, either


def source_of(sidecar: dict) -> str:
    """The scan that ``sidecar`` names."""
    return (
        sidecar["Sources"][0] if "Sources" in sidecar else Path(sidecar.get("Source", {}).get("Path", "")).name
    )  # 0.4


def read_ours(path: Path) -> dict | None:
    """The JSON at ``path``, or None where there is none or this bundle did not make it."""
    try:
        content = json.loads(path.read_text())
        return content if any(maker["Name"] == NAME for maker in content["GeneratedBy"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
