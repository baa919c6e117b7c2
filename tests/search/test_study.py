"""A study is continued by the settings that it began with, in any storage, and by its own trials."""

import json
import logging
import shutil
import signal
import sqlite3
import sys
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import monai
import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState

from scripts.search.study import counts, logged_to, open_study, put_back

pytestmark = pytest.mark.usefixtures("undrawn")


def test_other_settings_are_refused_by_name(refusal: Callable, searched: tuple[Path, optuna.Study]) -> None:
    now = {"min_epochs": 2, "max_epochs": 4, "reduction_factor": 4, "pruner": "none", "sampler": "random", "seed": 1}
    now |= {"metric": "val_mcc", "inner_folds": [0, 1], "direction": "minimize", "space#channels#high": 4}
    said = refusal(searched[0], study_name="default", overrides={"dropout": 0.1}, **now)
    assert said.startswith("study default: began with other settings (")
    for change in (
        "min_epochs was 1 and is 2",
        "max_epochs was 3 and is 4",
        "reduction_factor was 2 and is 4",
        "seed was 0 and is 1",
        "metric was val_mean_dice and is val_mcc",
        "direction was maximize and",
        "inner_folds was [0, 1, 2] and is [0, 1]",
        "overrides#dropout was 0.2 and is 0.1",
        "space#channels#high was 3 and is 4",
        "sampler#_target_ was optuna.samplers.TPESampler and is optuna.samplers.RandomSampler",
        "pruner#_target_ was optuna.pruners.SuccessiveHalvingPruner and is optuna.pruners.NopPruner",
    ):
        assert change in said  # fmt: skip


@pytest.mark.slow
def test_another_cohort_is_refused_and_a_copy_of_it_is_not(
    run_search: Callable, refusal: Callable, searched: tuple[Path, optuna.Study], coarse_dir: Path, tmp_path: Path
) -> None:
    folder, study = searched
    shutil.copytree(coarse_dir, tmp_path / "copy")
    flags = {"dataset_dir": str(tmp_path / "copy"), "overrides": {"dropout": 0.2}}
    assert len(run_search(folder, **flags).trials) == len(study.trials)
    datalist = json.loads((tmp_path / "copy" / "datalist.json").read_text())
    scans = [scan for scan in datalist["training"] if scan["fold"] != 0]
    one, other = scans[0], next(scan for scan in scans if scan["inner_folds"][0] != scans[0]["inner_folds"][0])
    one["inner_folds"][0], other["inner_folds"][0] = other["inner_folds"][0], one["inner_folds"][0]
    (tmp_path / "copy" / "datalist.json").write_text(json.dumps(datalist))
    assert refusal(folder, **flags).startswith("study default: began with other settings (cohort was [")


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["sqlite:///{}/study.db", "journal://{}/shared/journal.log"])
def test_a_trial_that_is_stopped_waits_and_is_continued_as_itself(
    storage: str, run_search: Callable, study_in: Callable, tmp_path: Path, stop_at: Callable
) -> None:
    url = storage.format(tmp_path)
    flags = {"storage": url, "n_trials": 1, "inner_folds": [0], "max_epochs": 2}
    stop_at(1, signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        run_search(tmp_path, **flags)
    (waiting,) = study_in(tmp_path, url).trials
    assert waiting.state == TrialState.WAITING
    assert not counts(waiting)
    (continued,) = run_search(tmp_path, **flags).trials
    assert continued.state == TrialState.COMPLETE
    assert continued.params == waiting.params
    assert sorted(continued.intermediate_values) == [1, 2]


def test_opening_a_study_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        open_study("s", f"sqlite:///{tmp_path}/s.db", str(tmp_path), None, {"direction": "maximize"}, 60, 2)
    assert [str(warning.message) for warning in said] == []


def test_a_trial_that_waited_long_is_not_taken_for_dead_when_it_is_taken_up(tmp_path: Path) -> None:
    def open_it() -> optuna.Study:
        url, pruner = f"sqlite:///{tmp_path}/study.db", optuna.pruners.NopPruner()
        return open_study("one", url, str(tmp_path), pruner, {"direction": "maximize"}, 1, 2)

    def stop(trial: optuna.Trial) -> float:
        put_back(trial)
        raise SystemExit

    with pytest.raises(SystemExit):
        open_it().optimize(stop, n_trials=1)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    study = open_it()
    trial = study.ask()
    optuna.storages.fail_stale_trials(open_it())  # as another worker does at any moment
    assert [t.state for t in study.trials] == [TrialState.RUNNING]
    assert trial.number == 0


def test_what_is_said_goes_to_the_log_and_afterwards_where_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "log.txt").write_text("before\n")
    with suppress(ZeroDivisionError), logged_to(tmp_path / "log.txt"):
        logging.getLogger("meshnet").warning("one")
        print("two", file=sys.stderr)
        raise ZeroDivisionError
    print("three", file=sys.stderr)
    logging.getLogger("meshnet").warning("four")
    assert (tmp_path / "log.txt").read_text() == "before\none\ntwo\n"
    assert capsys.readouterr().err == "three\n"
    assert caplog.messages == ["four"]


def survivors(values: list[list[float]], rungs: list[int], factor: int) -> list[list[int]]:
    """Who passes each rung when trials arrive one after another: the top 1/factor of those that have reached it."""
    reached: list[list[float]] = [[] for _ in rungs]
    passed: list[list[int]] = [[] for _ in rungs]
    for number, value in enumerate(values):
        for i, epoch in enumerate(rungs):
            reached[i].append(value[epoch - 1])
            best = sorted(reached[i], reverse=True)[: max(1, len(reached[i]) // factor)]
            if value[epoch - 1] < best[-1]:
                break
            passed[i].append(number)
    return passed


@pytest.mark.parametrize(("factor", "rungs"), [(2, [15, 30]), (3, [15, 45]), (4, [15])])
def test_asha_keeps_the_survivors_that_its_definition_says(factor: int, rungs: list[int]) -> None:
    """15 to 50 epochs, a known order: the rungs of docs/search.md."""
    config = str(ROOT / "configs" / "hpo.json")
    workflow = monai.bundle.ConfigWorkflow(config, min_epochs=15, max_epochs=50, reduction_factor=factor)
    workflow.initialize()
    pruner = workflow.parser.get_parsed_content("pruners#asha")
    study = optuna.create_study(direction="maximize", pruner=pruner)
    order = [(7 * number) % 30 for number in range(30)]
    values = [[rank + epoch / 100 for epoch in range(1, 51)] for rank in order]

    def objective(trial: optuna.Trial) -> float:
        for epoch, value in enumerate(values[trial.number], 1):
            trial.report(value, step=epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=30)
    last = {t.number: max(t.intermediate_values) for t in study.trials}
    assert {epoch for epoch in last.values() if epoch < 50} <= set(rungs)
    for epoch, expected in zip(rungs, survivors(values, rungs, factor), strict=True):
        assert [number for number in range(30) if last[number] > epoch] == expected
