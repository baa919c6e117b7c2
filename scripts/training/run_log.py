"""MONAI's StatsHandler logs training and validation apart and nothing of the run: this is one line an epoch."""

import csv
import logging
import time
from pathlib import Path

import ignite
import monai
import torch
from ignite.engine import Engine, Events
from monai.handlers import from_engine

from scripts.common.files import replace_file
from scripts.data.cohort import Cohort

logger = logging.getLogger("meshnet")


class RunLog:
    """Logs what a training run is, one line per epoch, and where everything is; writes ``history.csv``.

    "Waiting for data" is the share of the training steps' time before a batch is there.

    Attach it after the validation handler, so that an epoch's line has that epoch's metrics.

    Args:
        cohort: the split that is trained on.
        evaluator: the validation engine; its first metric of ``metrics`` is the one that is maximized.
        metrics: names of the validation metrics to show.
        settings: names and values to show at the start.
        output_dir: folder for ``history.csv``.
        model_path: where the weights for use are saved.
    """

    def __init__(
        self, cohort: Cohort, evaluator: Engine, metrics: list[str], settings: dict, output_dir: str, model_path: str
    ) -> None:
        self.cohort, self.evaluator, self.metrics, self.settings = cohort, evaluator, metrics, settings
        self.history, self.model_path = Path(output_dir) / "history.csv", model_path
        self._loss_of = from_engine("loss", first=True)
        self._scale = self._waited = self._trained = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, whose state dictionary has the history and the losses of the epoch under way."""
        engine.state.run_log = {"rows": [], "losses": [], "skipped_steps": 0}
        engine.state_dict_user_keys.append("run_log")
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._wait_started)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._wait_completed)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _started(self, trainer: Engine) -> None:
        cohort, network = self.cohort, trainer.network
        n_parameters = sum(p.numel() for p in network.parameters())
        precision = "fp16 mixed precision" if trainer.amp else "fp32"
        if getattr(getattr(trainer, "inferer", None), "enabled", False) or "dtype" in getattr(
            trainer, "amp_kwargs", {}
        ):
            precision = "bf16 mixed precision"
        logger.info(f"MONAI {monai.__version__}, torch {torch.__version__}, Ignite {ignite.__version__}")
        logger.info(f"{type(network).__name__}: {n_parameters:,} parameters; {precision} on {trainer.state.device}")
        logger.info("Settings: " + ", ".join(f"{name} {value}" for name, value in self.settings.items()))
        logger.info(
            f"Cohort: {cohort.name}; {len(cohort.training)} training, {len(cohort.validation)} validation, "
            f"{len(cohort.test)} test scans; grid {'x'.join(map(str, cohort.spatial_size))}, spacing "
            f"{'x'.join(f'{s:g}' for s in cohort.spacing)} mm"
        )
        if cohort.simulated:
            logger.warning(
                "This cohort is SIMULATED: it shows that the recipe works, not how well it does on patients. To train "
                "on ARC (OpenNeuro ds004884): python scripts/prepare_datalist.py --dataset_dir ARC, then add "
                "--dataset_dir ARC to this command"
            )
        self._clock = time.perf_counter()

    def _wait_started(self) -> None:
        self._wait_since = time.perf_counter()

    def _wait_completed(self) -> None:
        self._waited += time.perf_counter() - self._wait_since

    def _iteration_completed(self, trainer: Engine) -> None:
        trainer.state.run_log["losses"].append(float(self._loss_of(trainer.state.output)))
        if self._scale_of(trainer) < self._scale:  # so it has left out a step because of infinite gradients
            trainer.state.run_log["skipped_steps"] += 1
        self._trained += time.perf_counter() - self._started_at

    def _scale_of(self, trainer: Engine) -> float:
        scaler = getattr(trainer, "scaler", None)
        return 0.0 if scaler is None else scaler.get_scale()

    def _iteration_started(self, trainer: Engine) -> None:
        self._scale, self._started_at = self._scale_of(trainer), time.perf_counter()

    def _epoch_completed(self, trainer: Engine) -> None:
        now = time.perf_counter()
        epoch, seconds, self._clock = trainer.state.epoch, now - self._clock, now
        log = trainer.state.run_log
        loss, lr = float(torch.as_tensor(log["losses"]).mean()), trainer.optimizer.param_groups[0]["lr"]
        validated = self.evaluator.state.epoch == epoch
        values = [self.evaluator.state.metrics[name] for name in self.metrics] if validated else []
        log["rows"].append([epoch, loss, lr, *(values or [""] * len(self.metrics)), log["skipped_steps"]])
        with replace_file(self.history) as file:
            csv.writer(file).writerows([["epoch", "loss", "lr", *self.metrics, "skipped_steps"], *log["rows"]])
        skipped = f"  {log['skipped_steps']} fp16 steps skipped" if log["skipped_steps"] else ""
        log["losses"], log["skipped_steps"] = [], 0
        shown = "".join(f"  {name} {value:.3f}" for name, value in zip(self.metrics, values, strict=False))
        best = "  best" if validated and self.evaluator.state.best_metric_epoch == epoch else ""
        width = len(str(trainer.state.max_epochs))
        waited = self._waited / max(self._waited + self._trained, 1e-9)
        self._waited = self._trained = 0.0
        logger.info(
            f"epoch {epoch:{width}}/{trainer.state.max_epochs}  loss {loss:.4f}  lr {lr:.2e}{shown}  "
            f"{seconds:.1f} s ({waited:.1%} waiting for data){skipped}{best}"
        )

    def _completed(self, trainer: Engine) -> None:
        state = self.evaluator.state
        if self.cohort.validation:
            logger.info(f"Best {self.metrics[0]} {state.best_metric:.3f} at epoch {state.best_metric_epoch}")
        which = "best" if self.cohort.validation else "final"
        logger.info(f"Weights ({which}): {self.model_path}; history: {self.history}")
        logger.info(
            "Next: the held-out test fold, `python -m monai.bundle run evaluating --config_file "
            "\"['configs/train.json','configs/evaluate.json']\"` with the same overrides"
        )
