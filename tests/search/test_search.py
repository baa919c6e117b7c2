"""A search ends with what its trials were, however often it is stopped or killed; none is lost or run twice."""

import csv
import itertools
import json
import runpy
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState

from scripts.hpo import hpo
from scripts.search.study import counts

GRID = {"channels": [1, 2], "learning_rate": [0.01], "weight_decay": [1e-4], "background_weight": [0.5]}
GRID["warmup_fraction"] = [0.02]
ONE = {"inner_folds": [0], "max_epochs": 2}  # the quickest trials

pytestmark = pytest.mark.usefixtures("undrawn")


def wait_for(path: Path, process: subprocess.Popen, log: Path) -> None:
    while not path.exists():
        assert process.poll() is None, log.read_text()[-2000:]
        time.sleep(0.01)


def test_results_are_a_table_and_pictures(searched: tuple[Path, optuna.Study]) -> None:
    rows = list(csv.DictReader((searched[0] / "trials.csv").open()))
    assert [int(row["number"]) for row in rows] == [0, 1, 2, 3, 4]
    assert {row["state"] for row in rows} == {"COMPLETE", "PRUNED"}
    assert {"params_channels", "params_learning_rate", "user_attrs_overrides", "value"} <= set(rows[0])
    for name in ("learning_curves", "optimization_history", "slice"):
        assert (searched[0] / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_pruned_trial_stops_at_a_rung(searched: tuple[Path, optuna.Study]) -> None:
    pruned = [t for t in searched[1].trials if t.state == TrialState.PRUNED]
    assert pruned
    assert {max(t.intermediate_values) for t in pruned} <= {1, 2}  # a reduction factor of 2 from epoch 1; 3 is the end
    assert all(t.state == TrialState.COMPLETE for t in searched[1].trials if max(t.intermediate_values) == 3)


@pytest.mark.slow
def test_stopped_twice_inside_trials_a_study_ends_as_one_that_was_not(
    searched: tuple[Path, optuna.Study], run_search: Callable, tmp_path: Path, stop_at: Callable
) -> None:
    folder = tmp_path / "hpo"
    for count, number, n_trials in ((2, signal.SIGTERM, 2), (7, signal.SIGINT, 2), (4, signal.SIGTERM, 5)):
        stop_at(count, number)
        with pytest.raises(SystemExit, match=str(128 + number)):
            run_search(folder, overrides={"dropout": 0.2}, n_trials=n_trials)
    ours, theirs = run_search(folder, overrides={"dropout": 0.2}).trials, searched[1].trials
    for what in ("number", "state", "params", "value", "intermediate_values", "system_attrs"):
        assert [getattr(t, what) for t in ours] == [getattr(t, what) for t in theirs], what
    assert [t.user_attrs["inner_folds"] for t in ours] == [t.user_attrs["inner_folds"] for t in theirs]
    assert sorted(path.name for path in (folder / "trials").iterdir()) == [f"{number:04d}" for number in range(5)]


@pytest.mark.slow
def test_a_grid_is_searched_once_although_it_was_stopped(
    run_search: Callable, tmp_path: Path, stop_at: Callable
) -> None:
    flags = {**ONE, "sampler": "grid", "samplers#grid#search_space": GRID}
    stop_at(1, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_search(tmp_path / "hpo", **flags)
    for _ in range(2):  # the second time there is nothing left
        trials = run_search(tmp_path / "hpo", **flags).trials
    assert sorted(trial.params["channels"] for trial in trials) == [1, 2]
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.slow
def test_the_trial_of_a_killed_command_is_continued_from_where_it_was(
    run_search: Callable, study_in: Callable, start_search: Callable, searched: tuple, tmp_path: Path
) -> None:
    flags = {"n_trials": 1, "overrides": '{"dropout": 0.2}', "heartbeat_interval": 1}
    folder, log = tmp_path / "hpo", tmp_path / "log"
    process = start_search(folder, log, **flags)
    wait_for(folder / "trials" / "0000" / "inner_fold-2" / "checkpoint_last.pt", process, log)
    process.kill()
    process.wait()
    assert "Traceback" not in log.read_text()
    (killed,) = study_in(folder).trials
    assert killed.state == TrialState.RUNNING  # for all that anyone knows
    killed, retried = run_search(folder, **{**flags, "overrides": {"dropout": 0.2}}).trials
    assert (killed.state, killed.value, counts(killed)) == (TrialState.FAIL, None, False)
    assert (retried.state, retried.params) == (TrialState.COMPLETE, killed.params)
    assert retried.intermediate_values == searched[1].trials[0].intermediate_values
    assert [p.name for p in (folder / "trials").iterdir()] == ["0000"]
    record = json.loads((folder / "trials" / "0000" / "inner_fold-0" / "run.json").read_text())
    assert len(record["continued"]) >= 1  # not from the beginning


@pytest.mark.slow
def test_failures_that_are_alike_stop_the_search_with_their_reason(
    refusal: Callable, study_in: Callable, tmp_path: Path
) -> None:
    rate = {"space#learning_rate#low": 1e30, "space#learning_rate#high": 1e30}
    said = refusal(tmp_path, n_trials=9, **ONE, **rate)
    assert said.startswith("3 trials in a row failed alike, the last failure was: epoch 1, learning rate ")
    trials = study_in(tmp_path).trials
    assert [(t.state, t.value, counts(t)) for t in trials] == [(TrialState.FAIL, None, True)] * 3
    assert all("the loss is nan" in t.user_attrs["reason"] for t in trials)
    assert refusal(tmp_path, n_trials=3, **ONE, **rate).startswith("no trial has succeeded, the last failure was: ")


def test_a_trial_whose_values_cannot_be_suggested_fails_and_is_counted(refusal: Callable, tmp_path: Path) -> None:
    grid = {name: values for name, values in GRID.items() if name != "channels"}
    said = refusal(tmp_path, n_trials=1, **ONE, sampler="grid", **{"samplers#grid#search_space": grid})
    assert said == (
        "no trial has succeeded, the last failure was: "
        "ValueError: The parameter name, channels, is not found in the given grid."
    )


@pytest.mark.slow
def test_a_trial_with_an_infinite_loss_fails_and_the_search_goes_on(run_search: Callable, tmp_path: Path) -> None:
    grid = {**GRID, "channels": [2], "learning_rate": [1e-3, 1e30]}
    wide = {"space#learning_rate#high": 1e30, "samplers#grid#search_space": grid}
    study = run_search(tmp_path / "hpo", sampler="grid", n_trials=2, **ONE, **wide)
    states = {t.params["learning_rate"]: t for t in study.trials}
    assert states[1e-3].state == TrialState.COMPLETE
    assert (states[1e30].state, states[1e30].value) == (TrialState.FAIL, None)


def test_an_overlay_is_what_differs(coarse_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = tmp_path / "mine.json"
    small = {"min_epochs": 1, "max_epochs": 1, "n_trials": 1, "inner_folds": [0], "space#channels#high": 5}
    overlay.write_text(json.dumps({**small, "sampler": "random"}))
    shutil.copytree(coarse_dir, tmp_path / "cohort")
    monkeypatch.chdir(tmp_path)
    hpo(overlay=str(overlay), dataset_dir="cohort", output_dir="hpo")
    overrides = json.loads((tmp_path / "hpo" / "trials" / "0000" / "overrides.json").read_text())
    assert overrides["epochs"] == 1
    assert overrides["dataset_dir"] == str(tmp_path / "cohort")  # the file works from any directory


@pytest.mark.postgres
@pytest.mark.slow
def test_two_workers_are_one_search_and_lose_or_repeat_no_trial(
    start_search: Callable, tmp_path: Path, postgres: str
) -> None:
    flags = {"storage": postgres, "study_name": "two", "n_trials": 6, **ONE}
    workers = [start_search(tmp_path / "hpo", tmp_path / f"log{i}", **flags) for i in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0], (tmp_path / "log0").read_text()[-2000:]
    trials = optuna.load_study(study_name="two", storage=postgres).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(map(counts, trials)) == len(trials)  # none is left running or waiting
    assert 6 <= len(trials) <= 7  # both may have seen room for one more
    assert len({json.dumps(trial.params) for trial in trials}) == len(trials)
    assert len(list((tmp_path / "hpo" / "trials").iterdir())) == len(trials)
    begun = sorted((trial.datetime_start, trial.datetime_complete) for trial in trials)
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(begun))  # they did work at once


@pytest.mark.slow
def test_the_search_is_a_bundle_run_as_well(
    coarse_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = {"min_epochs": 1, "n_trials": 1, "max_epochs": 1, "inner_folds": "[0]", "output_dir": tmp_path / "hpo"}
    flags |= {"config_file": ROOT / "configs" / "hpo.json", "dataset_dir": coarse_dir}
    arguments = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", *arguments])
    runpy.run_module("monai.bundle", run_name="__main__")
    assert "To train with the best one:" in capsys.readouterr().out
