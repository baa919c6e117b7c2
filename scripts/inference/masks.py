"""Ignite ends a run with the first error: here a scan that fails is left out with a line, and the others go on."""

import gzip
import logging
import os

import monai
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from tqdm import tqdm

from scripts.common.errors import InputError, describe
from scripts.data.check_scans import check_scans, problems_of
from scripts.evaluation import qc_picture
from scripts.inference.dataset_files import refuse_foreign_files, write_description, write_table
from scripts.inference.derivative import MASK, PICTURE, PROBABILITY, Derivative
from scripts.inference.lesions import measure

logger = logging.getLogger("meshnet")


class Dataset(monai.data.Dataset):
    """MONAI's, but where the transform fails an item keeps its path and gets an ``error``."""

    def _transform(self, index: int) -> dict:
        try:
            return super()._transform(index)
        except Exception as error:  # memory that is short, a file that is gone: the other scans go on
            return {**self.data[index], "error": describe(error)}


class Masks:
    """Which scans are to be segmented, and what is written of each: all of its files, or none.

    Args:
        derivative: where they are written.
        card: the weights' card.
        qc: draw a picture of each scan.
        save_probability: write the probability of each voxel.
    """

    def __init__(self, derivative: Derivative, card: dict, qc: bool = True, save_probability: bool = False) -> None:
        self.derivative, self.card, self.qc = derivative, card, qc
        self.wanted = [MASK, *[PICTURE] * qc, *[PROBABILITY] * save_probability]
        self.problems: list[str] = []
        self._load = monai.transforms.LoadImage(ensure_channel_first=True)

    def to_do(self, scans: list[dict]) -> list[dict]:
        """Of ``scans``, each read in full, those that lack an output of these weights and settings.

        Raises:
            InputError: the folder is another's.
        """
        refuse_foreign_files(self.derivative.folder)
        left = [scan for scan in scans if not self.derivative.is_done(scan["image"], self.wanted)]
        if len(left) < len(scans):
            logger.info(f"{len(scans) - len(left)} of {len(scans)} scans have their masks by these weights already")
        reports = check_scans(left)
        for scan, report in zip(left, reports, strict=True):
            report["errors"] += self.derivative.refusals(scan["image"])
        self.problems, warnings = problems_of(left, reports)
        for line in warnings:
            logger.warning(line)
        for line in self.problems:
            logger.error(f"{line}; left out")
        readable = [
            (scan["image"], report["sha256"])
            for scan, report in zip(left, reports, strict=True)
            if not report["errors"]
        ]
        return [{"image": path, "scan": path, "sha256": digests["image"]} for path, digests in readable]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        shown = (f"{name} {value}" for name, value in self.card.items() if len(str(value)) < 60)
        logger.info("Model: " + ", ".join(shown))
        if self.card.get("simulated"):
            logger.warning("Trained on SIMULATED lesions: try these weights, but draw no conclusions from them")
        write_description(self.derivative)

    def segment(self, engine: Engine, batch: dict) -> dict:
        """An evaluator's ``iteration_update``: MONAI's own with its postprocessing, then the files of the scan."""
        (scan,) = batch["scan"]
        try:
            if "error" in batch:
                raise InputError(batch["error"][0])
            (item,) = engine._iteration(engine, batch)
            self._write(scan, batch["sha256"][0], item)
        except Exception as error:  # the other scans go on
            self.problems.append(f"{scan}: {describe(error)}")
            logger.error(f"{self.problems[-1]}; left out")
        return {}  # no volume is kept

    def _write(self, scan: str, digest: str, item: dict) -> None:
        mask, image = item["pred"].cpu(), self._load(scan)
        found = measure(mask, image)
        shown = f"{os.path.basename(scan)}: lesion {found['lesion_volume']:,.0f} mm3 in {found['lesions']} part(s)"
        files = {MASK: _nifti(mask, np.uint8)}
        if self.qc:
            files[PICTURE] = qc_picture.draw(image, {"red": mask}, shown)
        if PROBABILITY in self.wanted:
            files[PROBABILITY] = _nifti(item["probability"].cpu(), np.float32)
        self.derivative.write(scan, digest, found, files)
        tqdm.write(shown)  # above the bar

    def finish(self) -> None:
        """Write the table of all masks in the folder.

        Raises:
            InputError: scans were left out, a line for each.
        """
        write_table(self.derivative.folder)
        if self.problems:
            raise InputError("\n".join([f"{len(self.problems)} scan(s) left out:", *self.problems]))


def _nifti(volume: MetaTensor, dtype: type) -> bytes:
    """A compressed file of ``volume`` (1, D, H, W)."""
    image = nib.Nifti1Image(volume[0].numpy().astype(dtype), volume.affine.numpy())
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 1, mtime=0)
