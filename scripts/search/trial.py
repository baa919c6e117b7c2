"""Optuna knows no bundle: here a trial is train.json with an override file, its inner folds advanced together."""

import json
import logging
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stderr
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.search.inner_fold import InnerFold
from scripts.search.space import check_count, check_space, read_recipe


@dataclass
class Objective:
    """The mean validation metric of a trial's inner folds; ``cohort`` has a fingerprint for each of them.

    Raises:
        InputError: whatever is wrong with the numbers, the space, the overrides or the cohort.
    """

    output_dir: str  # folder of the trials and the results
    space: dict[str, Callable]  # for each key of train.json a function of the trial and the key
    overrides: dict  # what all trials have in common, its references not resolved
    dataset_dir: str | None  # None is the default cohort
    fold: int  # the outer fold, which is not read
    inner_folds: list[int]
    metric: str  # a validation metric of train.json
    min_epochs: int  # of the pruner's first rung
    max_epochs: int  # of a trial that is not pruned

    def __post_init__(self) -> None:
        check_count(1, min_epochs=self.min_epochs, max_epochs=self.max_epochs)
        if self.min_epochs > self.max_epochs:
            raise InputError(f"min_epochs {self.min_epochs}: more than max_epochs, which is {self.max_epochs}")
        if not self.inner_folds or len(self.inner_folds) > len({*self.inner_folds}):
            raise InputError(f"inner_folds {self.inner_folds}: expected one or more, each once")
        self.folder = Path(self.output_dir).resolve()
        self.common = {**self.overrides, "fold": self.fold, "epochs": self.max_epochs, "val_interval": 1}
        if self.dataset_dir is not None:  # the trials' files work from any directory
            self.common["dataset_dir"] = str(Path(self.dataset_dir).resolve())
        check_space(self.space, self.overrides, self.common)
        recipes = [read_recipe({**self.common, "inner_fold": inner_fold}) for inner_fold in self.inner_folds]
        self.cohort = [recipe.get_parsed_content("cohort").fingerprint for recipe in recipes]

    def __call__(self, trial: optuna.Trial, after_epoch: Callable[[int, float], None]) -> float:
        """Train a trial, new or begun before.

        ``after_epoch`` is called after each epoch of an inner fold, with the epoch and the mean of the folds so far; if
        it raises ``SystemExit``, the trial's states are kept to be continued, and nothing is reported twice.
        """
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        begun = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
        folder = self.folder / "trials" / f"{trial.number if begun is None else begun:04d}"
        trial.set_user_attr("overrides", str(folder / "overrides.json"))
        states = folder.glob("inner_fold-*/*.pt")
        try:
            values = {name: suggest(trial, name) for name, suggest in self.space.items()}
            with replace_file(folder / "overrides.json") as file:
                json.dump({**self.common, **values}, file, indent=4)
            with ExitStack() as stack:
                _log_to(folder / "log.txt", stack)
                folds = [stack.enter_context(closing(InnerFold(folder, k, self.metric))) for k in self.inner_folds]
                return self._train(trial, folds, {*frozen.intermediate_values}, after_epoch)
        except SystemExit:
            states = ()
            raise
        finally:
            for state in states:
                state.unlink()

    def _train(self, trial: optuna.Trial, folds: list[InnerFold], reported: set[int], after_epoch: Callable) -> float:
        for epoch in range(1, self.max_epochs + 1):
            values = []
            for fold in folds:
                values.append(fold.advance(epoch))
                after_epoch(epoch, fmean(values))
            value = fmean(values)
            if not isfinite(value):
                raise ValueError(f"epoch {epoch}: {self.metric} is {value}")
            if epoch not in reported:
                trial.report(value, step=epoch)
                trial.set_user_attr("inner_folds", values)
                if epoch < self.max_epochs and trial.should_prune():  # a rung at the very end would only hide values
                    raise optuna.TrialPruned
        return value


def _log_to(path: Path, stack: ExitStack) -> None:
    """Send what a training logs and shows to a file of its own, as long as ``stack`` is open."""
    root = logging.getLogger()
    stack.callback(setattr, root, "handlers", root.handlers)
    file = stack.enter_context(path.open("a"))
    stack.enter_context(redirect_stderr(file))
    root.handlers = [logging.StreamHandler(file)]
