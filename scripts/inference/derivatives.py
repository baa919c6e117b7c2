"""MONAI saves masks: this makes them a BIDS derivative, with sidecars, a table and pictures, and skips what is done."""

import csv
import hashlib
import json
import logging
from pathlib import Path

from ignite.engine import Engine, Events
from monai.data.folder_layout import FolderLayoutBase
from monai.transforms import LoadImage
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.check_scans import check_scans, problems_of
from scripts.evaluation import qc_picture
from scripts.inference.lesions import measure

logger = logging.getLogger("meshnet")
BUNDLE = Path(__file__).resolve().parents[2]
DESCRIPTIONS = {
    "lesion_volume": {"Description": "Volume of the mask, in the scan's own grid", "Units": "mm3"},
    "lesions": {"Description": "Connected parts of the mask; voxels that share a corner are connected"},
    "left_volume": {"Description": "Part of the volume left of the scan's centre of brightness", "Units": "mm3"},
    "right_volume": {"Description": "The rest of the volume", "Units": "mm3"},
    "laterality": {"Description": "(left - right) / (left + right), n/a without a lesion"},
}
COLUMNS = tuple(DESCRIPTIONS)


class MaskLayout(FolderLayoutBase):
    """Where the outputs of a scan go: ``sub-1/anat/sub-1_T2w.nii.gz`` to ``sub-1/anat/sub-1_desc-lesion_mask.nii.gz``.

    Args:
        input_root: the folder below which outputs have the subfolders of their scans.
        output_dir: the folder of the derivative.
        suffix: what follows ``desc-lesion_``.
    """

    def __init__(self, input_root: str, output_dir: str, suffix: str = "mask.nii.gz") -> None:
        self.input_root, self.output_dir, self.suffix = Path(input_root), Path(output_dir), suffix

    def filename(self, subject: str, idx: int | None = None, **kwargs: object) -> Path:
        """The output for the scan at the path ``subject``; its folder is made."""
        path = self.beside(subject, self.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def beside(self, scan: str, suffix: str) -> Path:
        """The output of another suffix for ``scan``."""
        path = Path(scan)
        name = path.name.removesuffix(".gz").removesuffix(".nii").removesuffix("_T2w")
        folder = self.output_dir / path.absolute().parent.relative_to(self.input_root.absolute())
        return folder / f"{name}_desc-lesion_{suffix}"


class Derivatives:
    """Writes what belongs to each mask, and at the end ``lesions.tsv`` over all masks in the folder.

    A scan is done when its sidecar is there, which is written last.

    Args:
        layout: where the masks are.
        ckpt_path: the weights.
        card: the weights' card.
        settings: what else decides the masks.
        qc: draw a picture of each scan.
    """

    def __init__(self, layout: MaskLayout, ckpt_path: str, card: dict, settings: dict, qc: bool = True) -> None:
        self.layout, self.card, self.qc = layout, card, qc
        self.problems: list[str] = []
        self._load = LoadImage(ensure_channel_first=True)
        self.made_by = {
            "Name": "MeshNet stroke lesion segmentation",
            "Version": json.loads((BUNDLE / "metadata.json").read_text())["version"],
            "Weights": Path(ckpt_path).name,
            "WeightsSHA256": hashlib.sha256(Path(ckpt_path).read_bytes()).hexdigest(),
            "Settings": settings,
        }

    def to_do(self, scans: list[dict]) -> list[dict]:
        """Of ``scans`` those that have no mask of these weights and settings yet and can be read, each read in full."""
        left = [scan for scan in scans if not self._is_done(scan["image"])]
        if len(left) < len(scans):
            logger.info(f"{len(scans) - len(left)} of {len(scans)} scans have their masks by these weights already")
        reports = check_scans(left)
        self.problems, warnings = problems_of(left, reports)
        for line in warnings:
            logger.warning(line)
        for line in self.problems:
            logger.error(f"{line}; left out")
        return [scan for scan, report in zip(left, reports, strict=True) if not report["errors"]]

    def _is_done(self, image: str) -> bool:
        mask = self.layout.beside(image, "mask.nii.gz")
        if not mask.is_file():
            return False
        try:
            made = json.loads(self.layout.beside(image, "mask.json").read_text())
            return made["GeneratedBy"] == [self.made_by] and made["Source"] == _state(image)
        except (OSError, ValueError, KeyError):
            return False

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after its postprocessing has saved the masks."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _started(self, engine: Engine) -> None:
        shown = (f"{name} {value}" for name, value in self.card.items() if len(str(value)) < 60)
        logger.info("Model: " + ", ".join(shown))
        if self.card.get("simulated"):
            logger.warning(
                "These weights were trained on SIMULATED lesions: try them, but draw no conclusions from them"
            )
        description = {
            "Name": "Stroke lesion masks by MeshNet",
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [self.made_by],
        }
        with replace_file(self.layout.output_dir / "dataset_description.json") as file:
            file.write(json.dumps(description, indent=4) + "\n")

    def _iteration_completed(self, engine: Engine) -> None:
        for item in engine.state.output:
            mask = item["pred"].cpu()
            path = mask.meta["filename_or_obj"]
            image = self._load(path)
            found = measure(mask, image)
            shown = f"{Path(path).name}: lesion {found['lesion_volume']:,.0f} mm3 in {found['lesions']} part(s)"
            if self.qc:
                with replace_file(self.layout.beside(path, "qc.png"), "wb") as file:
                    file.write(qc_picture.draw(image, {"red": mask}, shown))
            sidecar = {"Type": "Lesion", "Source": _state(path), "GeneratedBy": [self.made_by], "Lesions": found}
            with replace_file(self.layout.beside(path, "mask.json")) as file:
                file.write(json.dumps(sidecar, indent=4) + "\n")
            tqdm.write(shown)  # above the bar

    def finish(self) -> None:
        """Write the table of all masks in the folder.

        Raises:
            InputError: scans were left out, a line for each.
        """
        rows = []
        for path in sorted(self.layout.output_dir.rglob("*_desc-lesion_mask.json")):
            sidecar = json.loads(path.read_text())
            mask = path.with_suffix(".nii.gz").relative_to(self.layout.output_dir)
            values = [sidecar["Lesions"][column] for column in COLUMNS]
            cells = ["n/a" if v is None else f"{v:.4g}" if abs(v) < 1 else f"{v:.10g}" for v in values]
            rows.append([mask, *cells, sidecar["Source"]["Path"]])
        if rows:
            with replace_file(self.layout.output_dir / "lesions.tsv") as file:
                csv.writer(file, delimiter="\t", lineterminator="\n").writerows([["mask", *COLUMNS, "scan"], *rows])
            with replace_file(self.layout.output_dir / "lesions.json") as file:
                file.write(json.dumps(DESCRIPTIONS, indent=4) + "\n")
            logger.info(f"Masks, pictures and lesions.tsv ({len(rows)} scans): {self.layout.output_dir}")
        if self.problems:
            raise InputError("\n".join([f"{len(self.problems)} scan(s) left out:", *self.problems]))


def _state(image: str) -> dict:
    stat = Path(image).stat()
    return {"Path": str(image), "Bytes": stat.st_size, "ModifiedNs": stat.st_mtime_ns}
