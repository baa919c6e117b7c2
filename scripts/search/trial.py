"""Run a trial: train.json with a file of overrides, whose inner folds advance together, epoch by epoch."""

import csv
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

import monai
import optuna
from ignite.engine import Events

from scripts.common.errors import InputError
from scripts.common.json_file import write_json
from scripts.search.report import report
from scripts.search.space import check_count, check_space, overlay_paths, read_recipe
from scripts.search.study import logged_to
from scripts.training.random_states import random_states, set_random_states


@dataclass
class Objective:
    """Trains a trial's inner folds and returns their mean metric. ``InputError``: an argument or the scans is wrong."""

    output_dir: str  # folder of the trials and the results
    space: dict[str, Callable]  # for each key of train.json a function of the trial and the key
    overrides: dict  # what all trials have in common, its references not resolved
    dataset_dir: str | None  # None is the default cohort
    fold: int  # the outer fold, which is not read
    inner_folds: list[int]
    metric: str  # a validation metric of train.json
    min_epochs: int  # of the pruner's first rung
    max_epochs: int  # of a trial that is not pruned
    overlays: str | Sequence[str] = ()  # config files of all trials after train.json; a bare name is the bundle's own

    def __post_init__(self) -> None:
        check_count(1, min_epochs=self.min_epochs, max_epochs=self.max_epochs)
        if self.min_epochs > self.max_epochs:
            raise InputError(f"min_epochs {self.min_epochs}: more than max_epochs, which is {self.max_epochs}")
        if not self.inner_folds or len(self.inner_folds) > len({*self.inner_folds}):
            raise InputError(f"inner_folds {self.inner_folds}: expected one or more, each once")
        self.folder = Path(self.output_dir).resolve()
        self.overlays = overlay_paths(self.overlays, "overlays")
        self.common = {**self.overrides, "fold": self.fold, "epochs": self.max_epochs, "val_interval": 1}
        if self.dataset_dir is not None:  # the trials' files work from any directory
            self.common["dataset_dir"] = str(Path(self.dataset_dir).resolve())
        check_space(self.space, self.overrides, self.common, self.overlays)
        recipes = [read_recipe({**self.common, "inner_fold": k}, self.overlays) for k in self.inner_folds]
        self.cohort = [recipe.get_parsed_content("cohort").fingerprint for recipe in recipes]

    def __call__(self, trial: optuna.Trial, after_epoch: Callable[..., None]) -> float:
        """Train a trial, new or begun before.

        ``after_epoch`` is called after each epoch of an inner fold with what can be shown; if it raises ``SystemExit``,
        the trial keeps its states to be continued, and nothing is reported twice.
        """
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        begun = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
        folder = self.folder / "trials" / f"{trial.number if begun is None else begun:04d}"
        trial.set_user_attr("overrides", str(folder / "overrides.json"))
        states = folder.glob("inner_fold-*/*.pt")
        try:
            overrides = self.common | {name: suggest(trial, name) for name, suggest in self.space.items()}
            write_json(folder / "overrides.json", overrides)
            with logged_to(folder / "log.txt"), ExitStack() as stack:
                trainings = (InnerFold(folder, {**overrides, "inner_fold": k}, self.overlays) for k in self.inner_folds)
                folds = [stack.enter_context(closing(training)) for training in trainings]
                return self._train(trial, folds, frozen.last_step or 0, after_epoch)
        except SystemExit:
            states = ()  # the trial will go on
            raise
        finally:
            for state in states:
                state.unlink()

    def report(self, study: optuna.Study) -> None:
        """Write and print the results of all trials so far."""
        report(study, self.folder, self.metric, self.overlays)

    def _train(self, trial: optuna.Trial, folds: list["InnerFold"], reported: int, after_epoch: Callable) -> float:
        for epoch in range(1, self.max_epochs + 1):
            values = []
            for fold in folds:
                values.append(fold.advance(epoch, self.metric))
                value = fmean(values)
                after_epoch(trial=trial.number, epoch=f"{epoch}/{self.max_epochs}", value=f"{value:.3f}")
            if not isfinite(value):
                raise ValueError(f"epoch {epoch}: {self.metric} is {value}")
            if epoch > reported:
                trial.report(value, step=epoch)
                trial.set_user_attr("inner_folds", values)
                if epoch < self.max_epochs and trial.should_prune():  # a rung at the very end would only hide values
                    raise optuna.TrialPruned
        return value


class InnerFold:
    """A training in a trial's folder that halts after each epoch, so that others of the process can run.

    It has random states of its own. ``overrides`` are of train.json and ``overlays``; a state that is there is
    continued.
    """

    def __init__(self, trial_dir: Path, overrides: dict, overlays: Sequence[str] = ()) -> None:
        folder = trial_dir / f"inner_fold-{overrides['inner_fold']}"
        own = {"output_dir": str(folder), "ckpt_dir": str(folder), "resume": True, "report": False}
        recipe = read_recipe({**overrides, **own}, overlays)
        recipe.get_parsed_content("initialize")
        self.trainer = recipe.get_parsed_content("train#trainer")
        self.history = folder / "history.csv"
        self.random = random_states()
        self._release = recipe.get_parsed_content("run_folder").release
        self._run = lambda: recipe.get_parsed_content("run")
        before_last = Events.EPOCH_COMPLETED(event_filter=lambda trainer, epoch: epoch < trainer.state.max_epochs)
        self.trainer.add_event_handler(before_last, self.trainer.interrupt)

    def close(self) -> None:
        """End a training that halts, while there is one to be told, and give its folders back."""
        if self.trainer._internal_run_generator is not None:  # Ignite's, where it halts
            self.trainer._internal_run_generator.close()
        self._release()

    def advance(self, epoch: int, metric: str) -> float:
        """Train up to ``epoch``, unless a state beyond it was continued; return a validation metric of that epoch."""
        if self.trainer.state.epoch < epoch:
            set_random_states(self.random)
            self._run()
            self._run = lambda: monai.engines.Workflow.run(self.trainer)  # Trainer.run would make a new scaler
            self.random = random_states()
        with self.history.open(newline="") as file:
            row = list(csv.DictReader(file))[epoch - 1]
        if metric not in row:
            raise InputError(f"metric {metric!r}: not one of {', '.join(key for key in row if key.startswith('val_'))}")
        return float(row[metric])
