"""Segment scans one by one: a scan that fails is left out with a line, and the others go on."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset, MetaTensor
from monai.engines.utils import IterationEvents
from torch.utils.data import get_worker_info
from tqdm import tqdm

from scripts.common.errors import InputError, describe, first_cause
from scripts.data.check_scans import check_scan
from scripts.data.reader import read_volume
from scripts.data.volume_files import stem
from scripts.data.volumes import Volume
from scripts.evaluation import qc_picture
from scripts.execution.agreement import adaptation_to
from scripts.inference.derivative import MASK, PICTURE, PROBABILITY, UNCERTAINTY, Derivative, refuse_foreign_files
from scripts.inference.lesion_table import write_table
from scripts.inference.lesions import measure, midline
from scripts.inference.scan_header import encode
from scripts.inference.stopwatch import Stopwatch
from scripts.inference.usual import unusual

logger = logging.getLogger("meshnet")


class ScansLeftOut(InputError):
    """Some scans were left out: a line for each. All others have their masks."""


class Scans(Dataset):
    """MONAI's, but a scan is checked first; one that fails keeps its path and gets an ``error``, lines for people.

    A scan that this process reads is in ``held`` until its files are written, so it is read once.
    """

    def __init__(self, data: list[dict], transform: Callable, held: dict[str, Volume]) -> None:
        super().__init__(data, transform)
        self.held = held

    def _transform(self, index: int) -> dict:
        item = self.data[index] | {"is_like_a_mask": False, "sha256": ""}
        try:
            volume, report = read_volume(item["scan"]), check_scan(item)
            for line in report["warnings"]:
                logger.warning(line)
            if report["is_like_a_mask"]:
                item["is_like_a_mask"] = True
                raise InputError(f"{item['scan']}: two or three whole values, so a mask and no scan")
            if report["errors"]:
                raise InputError("\n".join(report["errors"]))
            if get_worker_info() is None:
                self.held[item["scan"]] = volume
            return super()._transform(index) | {"is_like_a_mask": False, "sha256": volume.sha256}
        except Exception as error:  # memory that is short, a file that is gone: the other scans go on
            return item | {"error": _lines(item["scan"], error)}


class Masks:
    """Which scans the weights of this ``card`` segment, and what is written of each: all of its files, or none.

    ``left_out`` has lines for people for each scan that was left out, by its path; ``masks_given``, which are no scans,
    among them.

    InputError: the card's network has other than two classes.
    """

    def __init__(
        self,
        derivative: Derivative,
        card: dict,
        qc: bool = True,
        save_probability: bool = False,
        save_uncertainty: bool = False,
        predictions: int = 1,
    ) -> None:
        if (classes := card["network_def"].get("out_channels", 2)) != 2:
            raise InputError(
                f"these weights have {classes} classes, so no mask of lesion; for a map of labels give "
                "--config_file \"['configs/inference.json','configs/overlays/labels.json']\""
            )
        if not isinstance(save_uncertainty, bool):
            raise InputError(f"save_uncertainty {save_uncertainty!r}: expected true or false")
        if save_uncertainty and predictions < 2:
            raise InputError("save_uncertainty: there is one prediction; give several weights or --flip_averaging true")
        wanted = [MASK, *[PICTURE] * qc, *[PROBABILITY] * save_probability, *[UNCERTAINTY] * save_uncertainty]
        self.save_uncertainty = save_uncertainty
        self._begin(derivative, card, wanted)

    def _begin(self, derivative: Derivative, card: dict, wanted: list[str]) -> None:
        self.derivative, self.card, self.wanted = derivative, card, wanted
        self.left_out: dict[str, str] = {}
        self.left: dict[str, None] = {}  # scans to do that were not reached yet, in their order
        self.held: dict[str, Volume] = {}  # scans that are read and not yet saved
        self.described, self.n_given = False, 0
        self.masks_given: set[str] = set()
        self.first: dict[str, str] = {}  # a scan by its content
        self.saver, self.saving = ThreadPoolExecutor(1), Future()
        self.saving.set_result(None)
        self.stopwatch = Stopwatch()

    def to_do(self, scans: list[dict]) -> list[dict]:
        """Of ``scans``, those that lack an output.

        InputError: the folder is another's.
        """
        refuse_foreign_files(self.derivative.folder)
        left = [scan for scan in scans if not self.derivative.is_done(scan["image"], self.wanted)]
        if len(left) < len(scans):
            logger.info(f"{len(scans) - len(left)} of {len(scans)} scans have their masks by these weights already")
        self.left, self.n_given = dict.fromkeys(scan["image"] for scan in left), len(scans)
        return [{**scan, "scan": scan["image"]} for scan in left]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda: self.stopwatch.lap("network"))

    def _start(self) -> None:
        logger.info("Model: " + ", ".join(f"{name} {v}" for name, v in self.card.items() if len(str(v)) < 60))
        if self.card.get("simulated"):
            logger.warning("Trained on SIMULATED lesions: try these weights, but draw no conclusions from them")
        self.derivative.claim()
        self.stopwatch.start()

    def segment(self, engine: Engine, batch: dict, postprocessing: Callable) -> dict:
        """An evaluator's ``iteration_update``: MONAI's own.

        Its postprocessing and the files of the scan are done while the next scan is computed.
        """
        self.stopwatch.lap("waiting for the scan")
        (scan,), (digest,) = batch["scan"], batch["sha256"]
        self.left.pop(scan, None)
        if batch["is_like_a_mask"][0]:
            self.masks_given.add(scan)
            self.left_out[scan] = batch["error"][0]
            logger.warning(f"{batch['error'][0]}; left out")
            return {}
        try:
            if "error" in batch:
                raise InputError(batch["error"][0])
            if (first := self.first.setdefault(digest, scan)) != scan:
                logger.warning(f"{scan}: the same content as {first}")
            if lines := self.derivative.refusals(scan):  # before the network is computed
                raise InputError(lines[0])
            (item,) = engine._iteration(engine, batch)
            if not torch.isfinite(item["pred"]).all():
                raise InputError(f"{scan}: the network's answer is no number; give --amp false, or other weights")
            item["norm_adaptation"] = adaptation_to(item["image"][None], engine.network)
            self.saving.result()  # no more than one is held in memory
            self.saving = self.saver.submit(self._save, scan, digest, item, postprocessing)
        except Exception as error:  # the other scans go on
            self._leave_out(scan, error)
        self.stopwatch.lap("waiting for files")
        return {}  # no volume is kept

    def _save(self, scan: str, digest: str, item: dict, postprocessing: Callable) -> None:
        """Bring back to the scan's grid, measure, draw and write."""
        try:
            if lines := self.derivative.refusals(scan):  # somebody was here meanwhile
                raise InputError(lines[0])
            about, files, shown = self._results(scan, self.held.get(scan) or read_volume(scan), postprocessing(item))
            if not self.described:
                self.derivative.write_description()
                self.described = True
            self.derivative.write(scan, digest, about, files)
            tqdm.write(shown)  # above the bar
        except Exception as error:  # the other scans go on
            self._leave_out(scan, error)
        finally:
            self.held.pop(scan, None)

    def _results(self, scan: str, volume: Volume, item: dict) -> tuple[dict, dict[str, bytes], str]:
        """What the sidecar says, the outputs, and a line."""
        image = _tensor(volume)
        if odd := unusual(item["image"][0].cpu().numpy(), self.card, stem(Path(scan).name)):
            logger.warning(f"{scan}: unlike the scans these weights were trained on: {odd}; do not trust its mask")
        wanted, mask, adaptation = self.wanted, item["pred"].cpu(), item["norm_adaptation"]
        if self.derivative.is_changed(scan):
            logger.info(f"{scan}: its mask was changed by hand and stays; {PICTURE} shows it")
            wanted, mask = self.wanted[1:], _tensor(read_volume(self.derivative.path(scan, MASK))) > 0
        middle = midline(volume.data, volume.affine) if volume.sides_known else None
        lesions = measure(mask[0].numpy() > 0, volume.affine, middle)
        lesions |= {"quality": item["quality"], "norm_adaptation": adaptation, "unusual": odd}
        if adaptation:
            logger.info(f"{scan}: normalized by {adaptation:g} of its own statistics")
        elif adaptation == 0 and not lesions["lesion_voxels"]:
            logger.info(f"{scan}: no lesion found; if its skull was removed, try --norm_adaptation 0.35")
        shown = f"{Path(scan).name}: lesion {lesions['lesion_volume']:,.0f} mm3 in {lesions['lesions']} part(s)"
        files = {PICTURE: qc_picture.draw(image, {"red": mask}, shown)} if PICTURE in wanted else {}
        for output, key in ((MASK, "pred"), (PROBABILITY, "probability"), (UNCERTAINTY, "uncertainty")):
            if output in wanted:
                dtype = np.uint8 if output == MASK else np.float32
                files[output] = encode(item[key][0].cpu().numpy().astype(dtype), volume)
        return {"Lesions": lesions}, files, shown

    def _leave_out(self, scan: str, error: Exception) -> None:
        self.held.pop(scan, None)
        self.left_out[scan] = _lines(scan, error)
        for line in self.left_out[scan].splitlines():
            logger.error(f"{line}; left out")

    @property
    def problems(self) -> dict[str, str]:
        """``left_out`` but for masks among scans; where only masks were given, these are the problem."""
        only_masks = len(self.masks_given) == self.n_given
        return {scan: line for scan, line in self.left_out.items() if only_masks or scan not in self.masks_given}

    def _conclude(self) -> None:
        write_table(self.derivative.folder)

    def finish(self) -> None:
        """Write the table of all masks in the folder; ScansLeftOut, a line for each, if there are any."""
        self.saving.result()
        self.stopwatch.lap("waiting for files")
        for scan in self.left:  # MONAI's loader only ends when its thread or a worker dies
            self._leave_out(scan, InputError(f"{scan}: was not read, as the loader died; run the command again"))
        lines = [*self.problems.values()]
        n = len(lines)
        try:
            self._conclude()
        except InputError as error:  # on a full disk, which is why scans were left out
            if not lines:
                raise
            lines.append(str(error))
        with suppress(OSError):  # there is something in it, or no folder
            self.derivative.folder.rmdir()
        if line := self.stopwatch.report():
            logger.info(line)
        if lines:
            raise ScansLeftOut("\n".join([f"{n} scan(s) left out:", *lines]))


def _lines(scan: str, error: Exception) -> str:
    """What is wrong with a scan, for people: each line names it."""
    return describe(error) if isinstance(first_cause(error), InputError) else f"{scan}: {describe(error)}"


def _tensor(volume: Volume) -> MetaTensor:
    """As MONAI loads it (1, D, H, W)."""
    data, affine = (torch.from_numpy(array) for array in (volume.data, volume.affine))
    return MetaTensor(data[None], affine=affine, meta={"sides_known": volume.sides_known})
