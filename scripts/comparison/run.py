"""Do a run of a comparison: train on all folds but one and evaluate on that one, or evaluate restarts together."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import optuna
import pandas
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from optuna.trial import TrialState

from scripts.common import CONFIGS
from scripts.common.errors import InputError
from scripts.common.json_file import as_json, read_json, write_json
from scripts.comparison.fit import trains_by_steps
from scripts.comparison.plan import Plan, Run
from scripts.comparison.report import report
from scripts.search.space import read_recipe
from scripts.search.study import logged_to

MEASURED = str(CONFIGS / "evaluate.json")


@dataclass
class Runs:
    """Does a study's trials, which are runs of a plan."""

    plan: Plan

    def __call__(self, trial: optuna.Trial, after_epoch: Callable[..., None]) -> float:
        """Do a trial's run, or what is left of it; return the mean test DICE.

        ``after_epoch`` is called with what can be shown; if it raises ``SystemExit`` the run can be continued.
        A run that two workers have put into the study is done once.
        """
        if is_twin(trial):
            raise optuna.TrialPruned
        run = run_of(trial)
        folder = self.plan.folder / run.name
        folder.mkdir(parents=True, exist_ok=True)
        with logged_to(folder / "log.txt"):
            if run.restart is None:
                return evaluate_together(self.plan, run)["dice"]
            return train_and_evaluate(self.plan, run, lambda **shown: after_epoch(run=run.name, **shown))["dice"]

    def report(self, study: optuna.Study) -> None:
        """Write and print the results of all runs so far."""
        report(self.plan, study)


def run_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> Run:
    """Return the run that a trial is."""
    return Run(*(trial.user_attrs[field.name] for field in fields(Run)))


def is_twin(trial: optuna.Trial) -> bool:
    """Return whether an earlier trial, which has not failed, does the run of this one."""
    trials = trial.study.get_trials(deepcopy=False)[: trial.number]
    gone = (TrialState.FAIL, TrialState.PRUNED)
    same = (other for other in trials if other.user_attrs == trial.user_attrs and other.state not in gone)
    return "network" not in trial.user_attrs or any(same)


def train_and_evaluate(plan: Plan, run: Run, after_epoch: Callable[..., None] = lambda **shown: None) -> dict:
    """Train and evaluate, go on with what is there, or find that all is done; return the run's ``result.json``.

    Raises:
        InputError: the folder holds another run's results, or training or evaluation refuse what they are given.
    """
    folder = plan.folder / run.name
    path = folder / "result.json"
    overlays = [Path(path).name for path in plan.overlays(run.network)]
    settings = {key: value for key, value in plan.overrides(run).items() if key != "dataset_dir"}
    made_with = as_json({**settings, "overlays": overlays})
    if path.is_file():
        result = read_json(path, "delete it to do the run again")
        if result["made_with"] != made_with:
            raise InputError(f"{path}: of a run with other settings; give another --output_dir")
        return result
    own = {"output_dir": str(folder), "ckpt_dir": str(folder), "report": False}
    recipe = plan.recipe(run, **own, resume=True, **{"train#log#seconds": True})
    try:
        started = time.perf_counter()
        _train(recipe, after_epoch)
        seconds = _seconds(folder / "history.csv") or time.perf_counter() - started
    finally:
        recipe.get_parsed_content("run_folder").release()
    result = {**_evaluate(plan.recipe(run, MEASURED, **own), folder), "train_seconds": seconds, "made_with": made_with}
    write_json(path, result)
    for state in folder.glob("checkpoint_*.pt"):  # of three times the network's size
        state.unlink()
    return result


def evaluate_together(plan: Plan, run: Run) -> dict:
    """Evaluate a fold's restarts together, by the mean of their probabilities; return their ``result.json``."""
    folder = plan.folder / run.name
    members = [str(plan.folder / needed.name / "model.pt") for needed in plan.needs(run)]
    overrides = {k: v for k, v in plan.overrides(run).items() if not k.startswith("network_def")}  # it is the cards'
    own = {"output_dir": str(folder), "ckpt_path": members, "report": False}
    result = _evaluate(read_recipe({**overrides, **own}, [*plan.overlays(run.network), MEASURED]), folder)
    write_json(folder / "result.json", {**result, "members": len(members)})
    return result


def _train(recipe: ConfigParser, after_epoch: Callable[..., None]) -> None:
    """Run ``recipe`` as its command does, and call ``after_epoch`` behind each saved epoch but the last."""
    recipe.get_parsed_content("initialize")
    if trains_by_steps(recipe):
        trainer = recipe.get_parsed_content("train#trainer")

        def show(trainer: Engine) -> None:
            state = trainer.state
            if state.epoch < state.max_epochs:
                after_epoch(epoch=f"{state.epoch}/{state.max_epochs}")

        trainer.add_event_handler(Events.EPOCH_COMPLETED, show)
    recipe.get_parsed_content("run")


def _evaluate(recipe: ConfigParser, folder: Path) -> dict:
    started = time.perf_counter()
    recipe.get_parsed_content("run")
    seconds = time.perf_counter() - started
    dice = pandas.read_csv(folder / "metrics.csv")["dice"]
    parameters = sum(p.numel() for p in recipe.get_parsed_content("network").parameters())
    return {"dice": float(dice.mean()), "parameters": parameters, "scan_seconds": seconds / len(dice)}


def _seconds(history: Path) -> float:
    """Return a training's seconds over all its interruptions; 0 if it has no history."""
    return float(pandas.read_csv(history)["seconds"].sum()) if history.is_file() else 0.0
