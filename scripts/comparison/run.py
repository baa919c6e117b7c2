"""One run of a comparison: train on all folds but one, evaluate on that one; or evaluate a fold's restarts together."""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import optuna
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from optuna.trial import TrialState

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.common.json_file import read_json
from scripts.common.log_file import logged_to
from scripts.common.menus import MENUS
from scripts.comparison.fit import trains_by_steps
from scripts.comparison.plan import Plan, Run
from scripts.comparison.report import report
from scripts.search.space import read_recipe
from scripts.search.study import put_back

CONFIGS = MENUS.parent
MEASURED = str(CONFIGS / "evaluate.json")


@dataclass
class Runs:
    """What a study's trials are: runs of a plan."""

    plan: Plan

    def __call__(self, trial: optuna.Trial, after_epoch: Callable[..., None]) -> float:
        """Do a trial's run, or what is left of it; return the mean test DICE.

        ``after_epoch`` is called with what can be shown; if it raises ``SystemExit`` the trial waits, to be continued.
        A run that two workers have put into the study is done once.
        """
        if is_twin(trial):
            raise optuna.TrialPruned
        run = run_of(trial)
        folder = self.plan.folder / run.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with logged_to(folder / "log.txt"):
                if run.restart is None:
                    return evaluate_together(self.plan, run)["dice"]
                return train_and_evaluate(self.plan, run, lambda **shown: after_epoch(run=run.name, **shown))["dice"]
        except SystemExit:
            put_back(trial)
            raise

    def report(self, study: optuna.Study) -> None:
        """Write and print the results of all runs so far."""
        report(self.plan, study)


def run_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> Run:
    """The run that a trial is."""
    return Run(*(trial.user_attrs[field.name] for field in fields(Run)))


def is_twin(trial: optuna.Trial) -> bool:
    """Whether a trial has no run of its own: an earlier one has it, unless that failed."""
    trials = trial.study.get_trials(deepcopy=False)[: trial.number]
    gone = (TrialState.FAIL, TrialState.PRUNED)
    same = (other for other in trials if other.user_attrs == trial.user_attrs and other.state not in gone)
    return "network" not in trial.user_attrs or any(same)


def train_and_evaluate(plan: Plan, run: Run, after_epoch: Callable[..., None] = lambda **shown: None) -> dict:
    """The run's ``result.json``: trains and evaluates, goes on with what is there, or finds that all is done.

    Raises:
        InputError: the folder holds another run's results, or training or evaluation refuse what they are given.
    """
    folder, overlays = plan.folder / run.name, [Path(path).name for path in plan.overlays(run.network)]
    settings = {key: value for key, value in plan.overrides(run).items() if key != "dataset_dir"}
    path, made_with = folder / "result.json", json.loads(json.dumps({**settings, "overlays": overlays}))
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
    _write(path, result)
    for state in folder.glob("checkpoint_*.pt"):  # of three times the network's size
        state.unlink()
    return result


def evaluate_together(plan: Plan, run: Run) -> dict:
    """The ``result.json`` of a fold's restarts together, by the mean of their probabilities."""
    folder = plan.folder / run.name
    members = [str(plan.folder / needed.name / "model.pt") for needed in plan.needs(run)]
    overrides = {k: v for k, v in plan.overrides(run).items() if not k.startswith("network_def")}  # it is the cards'
    own = {"output_dir": str(folder), "ckpt_path": members, "report": False}
    result = _evaluate(read_recipe({**overrides, **own}, [*plan.overlays(run.network), MEASURED]), folder)
    _write(folder / "result.json", {**result, "members": len(members)})
    return result


def _train(recipe: ConfigParser, after_epoch: Callable[..., None]) -> None:
    """Run ``recipe`` as its command does, and call ``after_epoch`` behind each saved epoch but the last."""
    recipe.get_parsed_content("initialize")
    if trains_by_steps(recipe):
        trainer = recipe.get_parsed_content("train#trainer")

        def show(trainer: Engine) -> None:
            epoch, epochs = trainer.state.epoch, trainer.state.max_epochs
            if epoch < epochs:
                after_epoch(epoch=f"{epoch}/{epochs}")

        trainer.add_event_handler(Events.EPOCH_COMPLETED, show)
    recipe.get_parsed_content("run")


def _evaluate(recipe: ConfigParser, folder: Path) -> dict:
    started = time.perf_counter()
    recipe.get_parsed_content("run")
    seconds = time.perf_counter() - started
    with (folder / "metrics.csv").open(newline="") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file)]
    parameters = sum(p.numel() for p in recipe.get_parsed_content("network").parameters())
    return {"dice": fmean(dice), "parameters": parameters, "scan_seconds": seconds / len(dice)}


def _seconds(history: Path) -> float:
    """A training's duration over all its interruptions; 0 if it has no history."""
    if not history.is_file():
        return 0.0
    with history.open(newline="") as file:
        return sum(float(row["seconds"]) for row in csv.DictReader(file))


def _write(path: Path, result: dict) -> None:
    with replace_file(path) as file:
        json.dump(result, file, indent=4)
