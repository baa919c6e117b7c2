"""Write the page of an evaluation or a training: curves, subjects, volumes and pictures in one HTML file."""

import base64
import datetime
import io
import logging
import math
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import ignite.distributed as idist
import jinja2
import numpy as np
import pandas
import torch
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from monai.data import MetaTensor
from torch.utils.data import Dataset
from tqdm import tqdm

from scripts.common.files import replace_file
from scripts.evaluation import qc_picture
from scripts.evaluation.metrics import column, over_subjects, per_subject

logger = logging.getLogger("meshnet")
TEMPLATE = Path(__file__).with_name("report_template.html")
VOLUMES = ("true_volume", "predicted_volume")  # metrics of an evaluation; the report has columns of its own for them
COUNTS = ("true_positives", "false_positives", "false_negatives")  # and these are in the table only


@dataclass(eq=False)
class HtmlReport:
    """``report.html`` of an evaluation, or of a training's best validation: it opens in any browser, without a network.

    Attach it to the evaluator, or to a trainer together with the evaluator that validates it. Masks and metrics of the
    best validation are part of the trainer's state dictionary, so a run that was resumed shows them too. If several
    processes share the scans, theirs are put together by the scans' files, and the first process writes.
    """

    dataset: Dataset  # what the evaluator goes through one by one in this order: ``image`` and ``label`` on one grid
    scans: list  # the datalist's entries of the same scans; without any, nothing is kept or written
    output_dir: str  # of ``report.html``; ``history.csv`` is read there, if there is one
    title: str  # first line of the page
    facts: dict  # what to tell of the run
    evaluator: Engine | None = None  # if it is a trainer this is attached to
    _masks: list[torch.Tensor] = field(default_factory=list, init=False)
    _files: list[str] = field(default_factory=list, init=False)

    def attach(self, engine: Engine) -> None:
        self.engine = engine
        engine.state.report = {}
        engine.state_dict_user_keys.append("report")  # without scans too: a resumed run may want a report
        if self.scans:
            evaluator = self.evaluator or engine
            evaluator.add_event_handler(Events.STARTED, self._masks.clear)
            evaluator.add_event_handler(Events.STARTED, self._files.clear)
            evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
            evaluator.add_event_handler(Events.COMPLETED, self._evaluated)
            engine.add_event_handler(Events.COMPLETED, self.write)

    def _iteration_completed(self, evaluator: Engine) -> None:
        for item in evaluator.state.output:  # a lesion mask takes some kB so
            packed = zlib.compress(np.packbits(item["pred"][1].cpu().numpy() > 0).tobytes(), 1)
            self._masks.append(torch.frombuffer(bytearray(packed), dtype=torch.uint8))
            if idist.get_world_size() > 1:
                self._files.append(str(item["image"].meta["filename_or_obj"]))

    def _gather(self, evaluator: Engine) -> None:
        """Put the processes' masks, and the metrics that MONAI has gathered, in the order of ``scans``."""
        found = idist.all_gather((list(self._files), list(self._masks)))
        files, masks = ([item for rank in found for item in rank[i]] for i in (0, 1))
        order = [files.index(str(scan["image"])) for scan in self.scans]
        self._masks[:] = [masks[i] for i in order]
        details = evaluator.state.metric_details
        details.update({name: values[order] for name, values in details.items()})

    def _evaluated(self, evaluator: Engine) -> None:
        if idist.get_world_size() > 1:
            self._gather(evaluator)
        epoch = evaluator.state.epoch
        state = self.engine.state
        if self.evaluator is None or not state.report or evaluator.state.best_metric_epoch == epoch:
            state.report = {
                "masks": list(self._masks),
                "columns": per_subject(evaluator, len(self.scans)),
                "key": evaluator.state.key_metric_name,
                "epoch": epoch,
                "together": over_subjects(evaluator),
            }

    def write(self) -> None:
        """Make the page; called at the end."""
        path = Path(self.output_dir) / "report.html"
        report = self.engine.state.report
        if not report or idist.get_rank() > 0:
            return
        facts = {"date": f"{datetime.datetime.now():%Y-%m-%d %H:%M}", "command": " ".join(sys.argv), **self.facts}
        if self.evaluator is not None:
            facts["epoch shown"] = report["epoch"]
            best = self.evaluator.state.best_metric_epoch
            if best != report["epoch"]:
                facts["best epoch"] = f"{best}, before a report was asked for"
        rows = [self._subject(i, report) for i in tqdm(range(len(self.scans)), "Drawing report", leave=False)]
        columns = {name: values for name, values in report["columns"].items() if name not in VOLUMES + COUNTS}
        means = {name: torch.tensor(values).nanmean().item() for name, values in columns.items()}
        key = column(report["key"])
        worst = -1 if (self.evaluator or self.engine).metric_cmp_fn(0.0, math.inf) else 1  # where less is better
        rows.sort(key=lambda row: (not math.isnan(row[key]), worst * row[key]))
        plots = {"curves": _curves(path.with_name("history.csv"), report["key"]), "volumes": _volumes(rows)}
        template = jinja2.Template(TEMPLATE.read_text(), autoescape=True, undefined=jinja2.StrictUndefined)
        page = template.render(
            title=self.title, facts=facts, rows=rows, means=means, together=report["together"], **plots
        )
        with replace_file(path) as file:
            file.write(page)
        logger.info(f"Report: {path}")

    def _subject(self, index: int, report: dict) -> dict:
        item = self.dataset[index]
        scan = self.scans[index]
        truth = item["label"]
        packed = np.frombuffer(zlib.decompress(report["masks"][index].numpy()), np.uint8)
        mask = np.unpackbits(packed, count=truth.numel()).reshape(truth.shape)
        pred = MetaTensor(torch.from_numpy(mask), affine=truth.affine)
        millilitres = float(torch.linalg.det(truth.affine[:3, :3].double()).abs()) / 1000
        return {
            "name": " ".join(
                str(scan[key]) for key in ("subject", "session", "acquisition", "contrast") if scan.get(key)
            ),
            "truth": int((truth > 0).sum()) * millilitres,
            "pred": int(mask.sum()) * millilitres,
            "picture": base64.b64encode(qc_picture.draw(item["image"], {"lime": truth, "red": pred})).decode(),
            **{name: values[index] for name, values in report["columns"].items()},
        }


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return base64.b64encode(file.getvalue()).decode()


def _curves(history: Path, metric: str) -> str | None:
    """Draw each column of the history over epochs, the key ``metric`` first, as an SVG in base64; None without one."""
    if not history.is_file():
        return None
    table = pandas.read_csv(history, index_col="epoch").dropna(axis="columns", how="all")
    beside = {f"{start}{name[4:]}": name for name in table if name.startswith("val_") for start in ("train_", "")}
    first = ["loss", "val_loss", "lr", metric, *beside]  # training's curve is beside that of validation
    others = [name for name in table if name not in first and (name != "skipped_steps" or table[name].any())]
    of = {name: [one for one in beside if beside[one] == name] for name in (metric, *others) if name in table}
    panels = [["loss", "val_loss"], ["lr"], *([*ones, name] for name, ones in of.items())]
    figure = Figure(figsize=(11, 2.8 * math.ceil(len(panels) / 3)), layout="constrained")
    for i, panel in enumerate(panels, 1):
        axis = figure.add_subplot(math.ceil(len(panels) / 3), 3, i)
        for name in [name for name in panel if name in table]:
            points = table[name].dropna()
            axis.plot(points.index, points, marker=".", markersize=4, label=_title(name))
        labels = [line.get_label() for line in axis.lines]
        axis.set(xlabel="epoch", title=", ".join(labels))
        if len(labels) > 1:
            axis.legend()
        axis.grid(alpha=0.3)
    return _svg(figure)


def _title(name: str) -> str:
    """Return the name of a column of the history over its curve."""
    words = column(name).replace("_", " ")
    if name.startswith("train_"):
        return f"training {_title(name.removeprefix('train_').removeprefix('mean_'))}"
    return {"loss": "training loss", "lr": "learning rate"}.get(
        name, f"validation {words}" if "val_" in name else words
    )


def _volumes(rows: list[dict]) -> str:
    """Draw predicted over true volume, as an SVG in base64."""
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    truth, pred = ([max(row[key], 1e-2) for row in rows] for key in ("truth", "pred"))
    limits = [min(truth + pred) / 1.5, max(truth + pred) * 1.5]
    axis = figure.subplots()
    label = "predicted volume, mL (0 drawn as 0.01)"
    axis.set(xlabel="true volume, mL", ylabel=label, xlim=limits, ylim=limits, aspect="equal")
    axis.loglog(limits, limits, color="grey", linewidth=1)
    axis.loglog(truth, pred, "o", markersize=5, alpha=0.7)
    axis.grid(alpha=0.3)
    return _svg(figure)
