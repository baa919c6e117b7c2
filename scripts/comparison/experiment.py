"""Do the runs of a comparison by the search's loop: each run once, none before the runs that it needs."""

from dataclasses import asdict, dataclass

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
        plan = self.objective.plan
        known = self.study.user_attrs.get("networks", {})
        for name, entry in plan.networks.items():
            if known.get(name, entry) != entry:
                raise InputError(f"{name}: was {known[name]} in this study and is {entry}; give another --study_name")
        plan.networks = {**known, **plan.networks}  # runs of all are taken up, and all are in the table
        self.study.set_user_attr("networks", plan.networks)
        self.n_trials = len(plan.runs)
        self._tried: set[Run] = set()  # what fails is tried again by the next command, not by this one

    def _trials(self) -> list[FrozenTrial]:
        """Put the runs that can begin into the study; return all trials that are runs."""
        plan = self.objective.plan
        trials = self._runs()
        there = {run_of(trial) for trial in trials if trial.state in MAY_END_WELL}
        complete = {run_of(trial) for trial in trials if trial.state == TrialState.COMPLETE}
        possible = [run for run in plan.runs if complete.issuperset(plan.needs(run))]
        for run in possible:
            if run not in there | self._tried:
                self.study.enqueue_trial({}, user_attrs=asdict(run))
        self._tried |= {*possible} | there
        return self._runs()

    def _runs(self) -> list[FrozenTrial]:
        return [t for t in super()._trials() if "network" in t.user_attrs and t.state != TrialState.PRUNED]

    def _done(self, trials: list[FrozenTrial]) -> int:
        return len({run_of(trial) for trial in trials if counts(trial)} & {*self.objective.plan.runs})

    def _room(self, states: list[TrialState]) -> bool | None:
        if TrialState.WAITING in states:
            return True
        return None if TrialState.RUNNING in states and self.waits else False
