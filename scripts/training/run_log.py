"""Log what a run is and one line an epoch, training and validation together, and write history.csv."""

import csv
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from textwrap import shorten

import ignite
import ignite.distributed as idist
import monai
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, Timer
from monai.handlers import from_engine

from scripts.common.files import replace_file
from scripts.data.cohort import Cohort
from scripts.networks.meshnet import unwrapped
from scripts.training.run_folder import RunFolder

logger = logging.getLogger("meshnet")


class LossBar(ProgressBar):
    """Ignite's progress bar, with the loss and the learning rate of the last step."""

    @idist.one_rank_only()
    def attach(self, engine: Engine) -> None:
        loss_of = from_engine("loss", first=True)

        def shown(output: list[dict]) -> dict[str, float]:
            return {"loss": float(loss_of(output)), "lr": engine.optimizer.param_groups[0]["lr"]}

        super().attach(engine, output_transform=shown)


@dataclass(eq=False)
class RunLog:
    """Logs what a training run is, one line per epoch, and where everything is; writes ``history.csv``.

    A row of ``history.csv`` becomes the trainer's metrics, which MONAI's handlers show.

    "Waiting for data" is the share of the training steps' time before a batch is there.

    An epoch's line has what the handlers before it leave: the evaluator's metrics, and the epoch's means over scans of
    the numbers in ``trainer.state.terms``, which is empty before each iteration.
    """

    cohort: Cohort  # the split that is trained on
    grid: Sequence  # spacing in mm and size in voxels of what the network sees
    evaluator: Engine  # of the validation, whose metrics are shown; the key metric says what is best
    run_folder: RunFolder  # where ``history.csv`` goes, and what differs from the shipped recipe
    model_path: str  # where the weights for use are saved
    # Whether ``history.csv`` has each epoch's duration, which no two runs share, and how much of it went into waiting
    # for data, steps and validation; the rest is what handlers do.
    seconds: bool = False

    def __post_init__(self) -> None:
        self.history = self.run_folder.record.with_name("history.csv")
        self._loss_of = from_engine("loss", first=True)
        self._waited = Timer()
        self._trained = Timer()
        self._validated = Timer()
        self._scale = None

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, whose state dictionary has the history and the losses of the epoch under way."""
        engine.state.run_log = {"rows": [], "terms": {}, "skipped_steps": 0}
        engine.state_dict_user_keys.append("run_log")
        engine.add_event_handler(Events.STARTED, self._started)
        for timer, begin, end in (
            (self._waited, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED),
            (self._trained, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED),
        ):
            timer.attach(engine, start=Events.EPOCH_STARTED, resume=begin, pause=end)
        engine.add_event_handler(Events.EPOCH_STARTED, self._trained.pause)  # until there is a batch
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        self._validated.attach(self.evaluator, start=Events.STARTED, pause=Events.COMPLETED)

    def _started(self, trainer: Engine) -> None:
        cohort, network, (spacing, spatial_size) = self.cohort, unwrapped(trainer.network), self.grid
        n_parameters = sum(p.numel() for p in network.parameters())
        dtype = str(getattr(getattr(trainer, "inferer", None), "dtype", None) or torch.float32).removeprefix("torch.")
        logger.info(f"MONAI {monai.__version__}, torch {torch.__version__}, Ignite {ignite.__version__}")
        logger.info(f"{type(network).__name__}: {n_parameters:,} parameters; {dtype} on {trainer.state.device}")
        differences = ", ".join(f"{key} {shorten(json.dumps(x), 60)}" for key, x in self.run_folder.differences.items())
        logger.info(f"Differs from train.json: {differences or 'nothing'}")
        logger.info(
            f"Cohort: {cohort.name}; {len(cohort.training)} training, {len(cohort.validation)} validation, "
            f"{len(cohort.test)} test scans; grid {'x'.join(map(str, spatial_size))}, spacing "
            f"{'x'.join(f'{s:g}' for s in spacing)} mm"
        )
        if cohort.simulated:
            logger.warning(
                "This cohort is SIMULATED: it shows that the recipe works, not how well it does on patients. To train "
                "on ARC (OpenNeuro ds004884): python scripts/prepare_datalist.py --dataset_dir ARC, then add "
                "--dataset_dir ARC to this command"
            )
        self._clock = time.perf_counter()

    def _iteration_completed(self, trainer: Engine) -> None:
        terms = {"loss": float(self._loss_of(trainer.state.output)), **trainer.state.terms}
        for name, value in terms.items():
            trainer.state.run_log["terms"].setdefault(name, []).append([value, len(trainer.state.output)])
        scale = self._scale_of(trainer)
        if scale < self._scale:  # so it has left out a step because of infinite gradients
            trainer.state.run_log["skipped_steps"] += 1
        self._scale = scale

    def _scale_of(self, trainer: Engine) -> float:
        scaler = getattr(trainer, "scaler", None)
        return 0.0 if scaler is None else scaler.get_scale()

    def _iteration_started(self, trainer: Engine) -> None:
        trainer.state.terms = {}
        if self._scale is None:
            self._scale = self._scale_of(trainer)

    def _epoch_completed(self, trainer: Engine) -> None:
        now = time.perf_counter()
        epoch = trainer.state.epoch
        seconds = now - self._clock
        self._clock = now
        log = trainer.state.run_log
        lr = trainer.optimizer.param_groups[0]["lr"]
        means = {name: fmean(*zip(*values, strict=True)) for name, values in log["terms"].items()}
        validated = self.evaluator.state.epoch == epoch
        values = dict(self.evaluator.state.metrics) if validated else {}
        row = {"epoch": epoch, "loss": means.pop("loss"), "lr": lr, **values, "skipped_steps": log["skipped_steps"]}
        times = {"seconds_data": self._waited.value(), "seconds_step": self._trained.value()}
        times |= {"seconds": seconds, "seconds_validation": self._validated.value() if validated else 0.0}
        log["rows"].append({**row, **means, **(times if self.seconds else {})})
        self._write_history(log["rows"])
        trainer.state.metrics = {name: value for name, value in log["rows"][-1].items() if name != "epoch"}
        skipped = f"  {log['skipped_steps']} fp16 steps skipped" if log["skipped_steps"] else ""
        log["terms"] = {}
        log["skipped_steps"] = 0
        shown = "".join(f"  {name} {value:.3f}" for name, value in values.items())
        best = "  best" if validated and self.evaluator.state.best_metric_epoch == epoch else ""
        width = len(str(trainer.state.max_epochs))
        waited = self._waited.value() / max(self._waited.value() + self._trained.value(), 1e-9)
        logger.info(
            f"epoch {epoch:{width}}/{trainer.state.max_epochs}  loss {row['loss']:.4f}  lr {lr:.2e}{shown}  "
            f"{seconds:.1f} s ({waited:.1%} waiting for data){skipped}{best}"
        )

    @idist.one_rank_only()
    def _write_history(self, rows: list[dict]) -> None:
        longest_first = sorted(rows, key=len, reverse=True)  # an epoch without validation has fewer columns
        columns = dict.fromkeys(name for row in longest_first for name in row)
        with replace_file(self.history) as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _completed(self, trainer: Engine) -> None:
        state = self.evaluator.state
        if self.cohort.validation:
            logger.info(f"Best {state.key_metric_name} {state.best_metric:.3f} at epoch {state.best_metric_epoch}")
        which = "best" if self.cohort.validation else "final"
        logger.info(f"Weights ({which}): {self.model_path}; history: {self.history}")
        logger.info(
            "Next: the held-out test fold, `python -m monai.bundle run evaluating --config_file "
            "\"['configs/train.json','configs/evaluate.json']\"` with the same cohort, fold and folders"
        )
