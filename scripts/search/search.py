"""Run a study's trials until all its workers have enough, whatever ends a trial or a worker."""

import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from scripts.common.errors import InputError, describe
from scripts.search.space import check_count
from scripts.search.study import counts, put_back
from scripts.search.trial import Objective


@dataclass
class Search:
    """Runs a study's trials; docs/search.md says what is counted and when. ``InputError``: a number is out of range."""

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
        self._failures: list[str] = []  # the last failures' causes, as long as they are alike

    def run(self) -> None:
        """Run trials until the study has ``n_trials``; then write and print the results.

        Raises:
            InputError: trials keep failing for the same reason, or none has succeeded.
            SystemExit: 128 plus the signal's number, after SIGTERM or SIGINT.
        """
        self.study.sampler = self._sampler(0)
        with ExitStack() as stack, suppress(SystemExit):
            self.bar = stack.enter_context(tqdm(total=self.n_trials, desc=type(self).__name__, unit="trial"))
            for number in (signal.SIGTERM, signal.SIGINT):
                stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
            while len(self._failures) < self.max_same_failures and self._has_room():
                self.study.optimize(self._run_trial, n_trials=1, catch=Exception, gc_after_trial=True)
        self.objective.report(self.study)
        if self._signal is not None:
            print("Stopped; the same command continues the study", file=sys.stderr)
            raise SystemExit(128 + self._signal)
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if counts(trial)]
        failed = [trial for trial in trials if trial.state == TrialState.FAIL]
        alike = len(self._failures) >= self.max_same_failures
        if failed and (alike or len(failed) == len(trials)):
            what = f"{len(self._failures)} trials in a row failed alike" if alike else "no trial has succeeded"
            raise InputError(f"{what}, the last failure was: {failed[-1].user_attrs['reason']}")

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once
        self.bar.write(f"{signal.Signals(number).name}: stopping after this epoch", file=sys.stderr)

    def _show_or_stop(self, **more: str | int) -> None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        self.bar.set_postfix({"best": f"{self.study.best_value:.3f}" if complete else "-", **more})
        if self._signal is not None:
            raise SystemExit(128 + self._signal)

    def _has_room(self) -> bool:
        """Return whether there is a trial to run; wait while others run the last ones, to take over if they die."""
        while True:
            optuna.storages.fail_stale_trials(self.study)
            trials = self._trials()
            self.bar.n = self._done(trials)
            self._show_or_stop()
            room = self._room([trial.state for trial in trials])
            if room is not None:
                return room
            time.sleep(1)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _done(self, trials: list[FrozenTrial]) -> int:
        return sum(map(counts, trials))

    def _room(self, states: list[TrialState]) -> bool | None:
        """Return whether there is a trial to run now; None while it depends on others' trials."""
        exhausted = getattr(self.study.sampler, "is_exhausted", lambda study: False)
        if self.bar.n >= self.n_trials or (TrialState.WAITING not in states and exhausted(self.study)):
            return False
        return True if self.bar.n + states.count(TrialState.RUNNING) < self.n_trials or not self.waits else None

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Make a sampler whose draws depend on the seed, the trial's number and the study's trials, on nothing else."""
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        return self.make_sampler(**{"seed": seed, **getattr(self.make_sampler, "keywords", {})})  # a grid has its own

    def _run_trial(self, trial: optuna.Trial) -> float:
        self.study.sampler = self._sampler(trial.number)
        kind = ""
        try:
            return self.objective(trial, self._show_or_stop)
        except optuna.TrialPruned:
            raise
        except SystemExit:
            put_back(trial)
            raise
        except Exception as error:
            reason = describe(error)
            trial.set_user_attr("reason", reason)
            self.bar.write(f"a trial failed: {reason}", file=sys.stderr)
            kind = re.sub(r"/\S+|[-+\d.]+(e[-+]?\d+)?", "", reason)  # the cause without its files and numbers
            raise
        finally:
            self._failures = [*(other for other in self._failures if other == kind), kind] if kind else []
