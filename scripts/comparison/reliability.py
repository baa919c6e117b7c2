"""Measure what restarts' disagreement says about the error of their mean, for each voxel and each scan."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import torch
from ignite.engine import Engine, Events

from scripts.common.files import replace_file

BINS = 10
TOP = {"probability": 1.0, "uncertainty": 0.5}  # the largest value; a standard deviation of probabilities is below 0.5


@dataclass(eq=False)
class Reliability:
    """Writes ``reliability.csv`` and ``agreement.csv`` at the end of an ensemble's evaluation.

    ``reliability.csv`` counts the voxels of all scans in ten equal bins of the mean probability of lesion
    (``probability``) and of the predictions' standard deviation (``uncertainty``): ``voxels``, their ``mean``, the
    share that is ``lesion`` and the share whose class is ``wrong``. Of a calibrated ensemble ``lesion`` equals the mean
    probability (DeGroot & Fienberg, The Statistician 1983, 32:12-22). ``agreement.csv`` has each scan's ``quality``,
    the mean DICE of pairs of members, and its ``subject`` and ``image``.
    """

    scans: list[dict]  # those evaluated, in the loader's order
    output_dir: str  # of the files

    def __post_init__(self) -> None:
        self.qualities: list[float | None] = []
        self.sums = {of: np.zeros((BINS, 4)) for of in TOP}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator whose items have what ``Agreed`` gives, and ``probability``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def add(self, engine: Engine) -> None:
        """Count the voxels of a batch."""
        for item in engine.state.output:
            lesion = (item["label"][1] > 0).flatten().cpu().double()
            wrong = (item["pred"][1] > 0).flatten().cpu().double() != lesion
            values = {"probability": item["probability"][0], "uncertainty": item["uncertainty"][0]}
            for of, top in TOP.items():
                value = torch.as_tensor(values[of]).flatten().cpu().double()
                place = (value / top * BINS).long().clamp(0, BINS - 1).numpy()
                for i, weight in enumerate((torch.ones_like(value), value, lesion, wrong.double())):
                    self.sums[of][:, i] += np.bincount(place, weight.numpy(), BINS)
            self.qualities.append(item["quality"])

    def write(self, engine: Engine) -> None:
        """Write both files; called when the evaluation is over."""
        parts = []
        for of, sums in self.sums.items():
            part = pandas.DataFrame(sums, columns=["voxels", "mean", "lesion", "wrong"])
            part.insert(0, "low", np.arange(BINS) * TOP[of] / BINS)
            part.insert(0, "of", of)
            parts.append(part.assign(**part[["mean", "lesion", "wrong"]].div(part["voxels"], axis=0)))
        known = {key: [scan[key] for scan in self.scans] for key in ("subject", "image")}
        agreement = pandas.DataFrame({**known, "quality": self.qualities})
        for name, content in (("reliability", pandas.concat(parts)), ("agreement", agreement)):
            with replace_file(Path(self.output_dir, f"{name}.csv")) as file:
                content.to_csv(file, index=False, lineterminator="\n")
