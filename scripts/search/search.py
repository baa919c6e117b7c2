"""Optuna counts a worker's own trials: this loop ends when the study has enough, and survives whatever ends a trial."""

import logging
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import numpy as np
import optuna
from optuna.trial import TrialState
from tqdm import tqdm

from scripts.common.errors import InputError, describe
from scripts.search.report import report
from scripts.search.space import check_count
from scripts.search.study import counts, put_back
from scripts.search.trial import Objective


@dataclass
class Search:
    """Runs a study's trials; docs/search.md says what is counted and when.

    Raises:
        InputError: a number is out of range.
    """

    study: optuna.Study
    objective: Objective
    make_sampler: Callable[..., optuna.samplers.BaseSampler]  # takes a seed, unless it has one
    seed: int  # of the sampler; trainings have that of train.json
    n_trials: int  # of the study in the end, over all workers
    max_same_failures: int  # trials in a row that fail alike and stop the search
    waits: bool  # near the end for others' trials, to take over those of dead workers: a journal cannot tell

    def __post_init__(self) -> None:
        check_count(1, n_trials=self.n_trials, max_same_failures=self.max_same_failures)
        check_count(0, seed=self.seed)
        self._signal: int | None = None
        self._failures: list[str] = []  # the last causes, as long as they are alike

    def run(self) -> None:
        """Run trials until the study has ``n_trials``; then write and print the results.

        Raises:
            InputError: trials keep failing for the same reason, or none has succeeded.
            SystemExit: 128 plus the signal's number, after SIGTERM or SIGINT.
        """
        logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        self.study.sampler = self._sampler(0)
        try:
            with suppress(SystemExit), tqdm(total=self.n_trials, desc="Search", unit="trial") as self.bar:
                while len(self._failures) < self.max_same_failures and self._has_room():
                    self.study.optimize(self._run_trial, n_trials=1, catch=Exception, gc_after_trial=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        report(self.study, self.objective.folder, self.objective.metric)
        if self._signal is not None:
            print("Stopped; the same command continues the study", file=sys.stderr)
        self._stop_if_told()
        self._refuse_failure()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once
        self.bar.write(f"{signal.Signals(number).name}: stopping after this epoch", file=sys.stderr)

    def _stop_if_told(self) -> None:
        if self._signal is not None:
            raise SystemExit(128 + self._signal)

    def _has_room(self) -> bool:
        """Whether there is a trial to run; waits while others run the last ones, to take over if they die."""
        while True:
            self._stop_if_told()
            optuna.storages.fail_stale_trials(self.study)
            trials = self.study.get_trials(deepcopy=False)
            states = [trial.state for trial in trials]
            self.bar.n = ended = sum(map(counts, trials))
            self._show()
            exhausted = getattr(self.study.sampler, "is_exhausted", lambda study: False)
            if ended >= self.n_trials or (TrialState.WAITING not in states and exhausted(self.study)):
                return False
            if ended + states.count(TrialState.RUNNING) < self.n_trials or not self.waits:
                return True
            time.sleep(1)

    def _show(self, **more: str | int) -> None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self.bar.set_postfix({"best": f"{self.study.best_value:.3f}" if complete else "-", **more})

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler whose draws depend on the seed, the trial's number and the study's trials, on nothing else."""
        if "seed" in getattr(self.make_sampler, "keywords", {}):  # a class, where hpo.json gives no arguments
            return self.make_sampler()
        return self.make_sampler(seed=int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))

    def _run_trial(self, trial: optuna.Trial) -> float:
        self.study.sampler = self._sampler(trial.number)

        def after_epoch(epoch: int, value: float) -> None:
            self._show(trial=trial.number, epoch=f"{epoch}/{self.objective.max_epochs}", value=f"{value:.3f}")
            self._stop_if_told()

        try:
            value = self.objective(trial, after_epoch)
        except SystemExit:
            put_back(trial)
            raise
        except optuna.TrialPruned:
            self._failures = []
            raise
        except Exception as error:
            reason = describe(error)
            trial.set_user_attr("reason", reason)
            self.bar.write(f"a trial failed: {reason}", file=sys.stderr)
            kind = re.sub(r"/\S+|[-+\d.]+(e[-+]?\d+)?", "", reason)  # the cause without its files and numbers
            self._failures = [*self._failures, kind] if self._failures[-1:] == [kind] else [kind]
            raise
        self._failures = []
        return value

    def _refuse_failure(self) -> None:
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if counts(trial)]
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        alike = len(self._failures) >= self.max_same_failures
        if failed and (alike or len(failed) == len(trials)):
            what = f"{len(self._failures)} trials in a row failed alike" if alike else "no trial has succeeded"
            raise InputError(f"{what}, the last failure was: {failed[-1].user_attrs['reason']}")
