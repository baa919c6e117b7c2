"""The search's loop over runs that are planned instead of drawn: each once, none before what it needs."""

import time
from dataclasses import asdict, dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from scripts.common.errors import InputError
from scripts.comparison.plan import Run
from scripts.comparison.run import run_of
from scripts.search.search import Search
from scripts.search.study import counts

MAY_END_WELL = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)


@dataclass
class Experiment(Search):
    """Does the runs of a plan, alone or with other workers on the same study; docs/protocol.md says how.

    Raises:
        InputError: a network of the study was another one under the same name.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        plan, known = self.objective.plan, self.study.user_attrs.get("networks", {})
        for name, entry in plan.networks.items():
            if known.get(name, entry) != entry:
                raise InputError(f"{name}: was {known[name]} in this study and is {entry}; give another --study_name")
        plan.networks = {**known, **plan.networks}  # runs of all are taken up, and all are in the table
        self.study.set_user_attr("networks", plan.networks)
        self.n_trials = len(plan.runs)
        self._tried: set[Run] = set()  # what fails is tried again by the next command, not by this one

    def _has_room(self) -> bool:
        """Whether there is a run to do; waits while others do the last ones, to take over if they die."""
        while True:
            optuna.storages.fail_stale_trials(self.study)
            trials = self._enqueue()
            self.bar.n = len({run_of(trial) for trial in trials if counts(trial)} & {*self.objective.plan.runs})
            self._show_or_stop()
            states = {trial.state for trial in trials}
            if TrialState.WAITING in states:
                return True
            if TrialState.RUNNING not in states or not self.waits:
                return False
            time.sleep(1)

    def _enqueue(self) -> list[FrozenTrial]:
        """Put what can begin into the study; return all trials that are runs."""
        plan, trials = self.objective.plan, self._trials()
        there = {run_of(trial) for trial in trials if trial.state in MAY_END_WELL}
        complete = {run_of(trial) for trial in trials if trial.state == TrialState.COMPLETE}
        possible = [run for run in plan.runs if complete.issuperset(plan.needs(run))]
        for run in possible:
            if run not in there | self._tried:
                self.study.enqueue_trial({}, user_attrs=asdict(run))
        self._tried |= {*possible} | there
        return self._trials()

    def _trials(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [t for t in trials if "network" in t.user_attrs and t.state != TrialState.PRUNED]
