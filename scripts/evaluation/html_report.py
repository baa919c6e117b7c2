"""MONAI writes CSV files: this is a page to look at, with curves, subjects, pictures and volumes, in one HTML file."""

import base64
import csv
import datetime
import io
import logging
import math
import sys
import zlib
from pathlib import Path

import jinja2
import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch.utils.data import Dataset
from tqdm import tqdm

from scripts.common.files import replace_file
from scripts.evaluation import qc_picture

logger = logging.getLogger("meshnet")
TEMPLATE = Path(__file__).with_name("report_template.html")


class HtmlReport:
    """``report.html`` of an evaluation, or of a training's best validation: it opens in any browser, without a network.

    Attach it to the evaluator, or to a trainer together with the evaluator that validates it.

    Args:
        dataset: what the evaluator goes through one by one in this order: ``image`` and ``label`` on one grid.
        scans: the datalist's entries of the same scans.
        metrics: column name and name of the evaluator's metric.
        output_dir: folder for ``report.html``; ``history.csv`` is read there, if there is one.
        title: first line of the page.
        facts: what to tell of the run.
        evaluator: the evaluator, if it is a trainer this is attached to.
        enabled: False writes nothing.
    """

    def __init__(
        self,
        dataset: Dataset,
        scans: list[dict],
        metrics: dict[str, str],
        output_dir: str,
        title: str,
        facts: dict,
        evaluator: Engine | None = None,
        enabled: bool = True,
    ) -> None:
        self.dataset, self.scans, self.metrics, self.title, self.facts = dataset, scans, metrics, title, facts
        self.path, self.evaluator, self.enabled = Path(output_dir) / "report.html", evaluator, enabled
        self._masks: list[bytes] = []
        self._kept: dict | None = None

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, or with a trainer."""
        if not self.enabled or not self.scans:
            return
        evaluator = self.evaluator or engine
        evaluator.add_event_handler(Events.STARTED, self._masks.clear)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        evaluator.add_event_handler(Events.COMPLETED, self._evaluated)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def _iteration_completed(self, evaluator: Engine) -> None:
        for item in evaluator.state.output:  # a lesion mask takes some kB so
            self._masks.append(zlib.compress(np.packbits(item["pred"][1].cpu().numpy() > 0).tobytes(), 1))

    def _evaluated(self, evaluator: Engine) -> None:
        validates = self.evaluator is not None
        if validates and self._kept and evaluator.state.best_metric_epoch != evaluator.state.epoch:
            return
        details = {c: evaluator.state.metric_details[name] for c, name in self.metrics.items()}
        columns = {c: values.reshape(len(self.scans), -1).double().mean(1).tolist() for c, values in details.items()}
        self._kept = {"masks": list(self._masks), "columns": columns}
        if validates:
            self._kept["epoch"] = evaluator.state.epoch

    def write(self) -> None:
        """Make the page; called at the end."""
        if self._kept is None:
            return
        rows = [self._subject(i) for i in tqdm(range(len(self.scans)), "Drawing report", leave=False)]
        first = next(iter(self.metrics))
        rows.sort(key=lambda row: (not math.isnan(row[first]), row[first]))
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        facts = {"date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "command": " ".join(sys.argv), **self.facts}
        if "epoch" in self._kept:
            facts["epoch shown"] = self._kept["epoch"]
        page = environment.from_string(TEMPLATE.read_text()).render(
            title=self.title,
            facts=facts,
            metrics=list(self.metrics),
            rows=rows,
            means={c: np.nanmean([row[c] for row in rows]) for c in self.metrics},
            curves=_curves(self.path.with_name("history.csv")),
            volumes=_volumes(rows),
        )
        with replace_file(self.path) as file:
            file.write(page)
        logger.info(f"Report: {self.path}")

    def _subject(self, index: int) -> dict:
        item, scan = self.dataset[index], self.scans[index]
        truth = item["label"]
        packed = np.frombuffer(zlib.decompress(self._kept["masks"][index]), np.uint8)
        mask = np.unpackbits(packed, count=truth.numel()).reshape(truth.shape)
        pred = MetaTensor(torch.from_numpy(mask), affine=truth.affine)
        millilitres = float(torch.linalg.det(truth.affine[:3, :3].double()).abs()) / 1000
        name = " ".join(str(scan[key]) for key in ("subject", "session", "acquisition") if scan.get(key))
        picture = qc_picture.draw(item["image"], {"lime": truth, "red": pred})
        return {
            "name": name,
            "truth": int((truth > 0).sum()) * millilitres,
            "pred": int(mask.sum()) * millilitres,
            "picture": base64.b64encode(picture).decode(),
            **{column: values[index] for column, values in self._kept["columns"].items()},
        }


def _figure(width: float, height: float, n: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(1, n))


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return base64.b64encode(file.getvalue()).decode()


def _curves(history: Path) -> str | None:
    """Loss, learning rate and DICE over epochs, as an SVG in base64; None without a history."""
    if not history.is_file():
        return None
    with history.open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = _figure(11, 2.8, 3)
    for axis, (column, label) in zip(
        axes, {"loss": "training loss", "lr": "learning rate", "val_mean_dice": "validation DICE"}.items(), strict=True
    ):
        points = [(int(row["epoch"]), float(row[column])) for row in rows if row.get(column)]
        axis.plot(*zip(*points, strict=True) if points else ([], []), marker=".", markersize=4)
        axis.set(xlabel="epoch", title=label)
        axis.grid(alpha=0.3)
    return _svg(figure)


def _volumes(rows: list[dict]) -> str:
    """Predicted over true volume, as an SVG in base64."""
    figure, (axis,) = _figure(4.2, 3.8)
    truth, pred = ([max(row[key], 1e-2) for row in rows] for key in ("truth", "pred"))
    limits = [min(truth + pred) / 1.5, max(truth + pred) * 1.5]
    axis.loglog(limits, limits, color="grey", linewidth=1)
    axis.loglog(truth, pred, "o", markersize=5, alpha=0.7)
    axis.set(
        xlabel="true volume, mL",
        ylabel="predicted volume, mL (0 drawn as 0.01)",
        xlim=limits,
        ylim=limits,
        aspect="equal",
    )
    axis.grid(alpha=0.3)
    return _svg(figure)
