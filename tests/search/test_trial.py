"""A trial is train.json with a file of overrides: its folds end as three commands would, its value is their mean."""

import csv
import gc
import json
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import monai
import optuna
import pytest
from conftest import OVERLAYS, TRAIN
from optuna.trial import TrialState

from scripts.hpo import hpo
from scripts.search.trial import InnerFold

pytestmark = pytest.mark.usefixtures("undrawn")


def history(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "history.csv").open()))


def test_a_value_is_the_mean_of_the_inner_folds_at_that_epoch(searched: tuple[Path, optuna.Study]) -> None:
    folder, study = searched
    for trial in study.trials:
        folds = [history(folder / "trials" / f"{trial.number:04d}" / f"inner_fold-{k}") for k in (0, 1, 2)]
        assert {len(fold) for fold in folds} == {max(trial.intermediate_values)}  # all advanced to the same epoch
        for epoch, value in trial.intermediate_values.items():
            assert value == pytest.approx(sum(float(fold[epoch - 1]["val_mean_dice"]) for fold in folds) / 3)
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[3]  # of the last epoch, not of the luckiest


def test_the_outer_test_fold_is_never_read(searched: tuple[Path, optuna.Study], coarse_dir: Path) -> None:
    scans = json.loads((coarse_dir / "datalist.json").read_text())["training"]
    held_out = [coarse_dir / scan["image"] for scan in scans if scan["fold"] == 0]
    assert held_out
    assert not any(path.exists() for path in held_out)  # and yet:
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in searched[1].trials)


@pytest.mark.slow
def test_a_trial_with_dropout_is_byte_for_byte_its_three_commands(
    searched: tuple[Path, optuna.Study],
    run_search: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, study = searched
    trial = folder / "trials" / f"{study.best_trial.number:04d}"
    assert json.loads((trial / "overrides.json").read_text())["dropout"] == 0.2
    run_search(folder, overrides={"dropout": 0.2})  # which has nothing left to do, and prints the command again
    line = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr("sys.argv", shlex.split(line)[2:])
    runpy.run_module("monai.bundle", run_name="__main__")
    runs = [folder / "best"]
    for inner_fold in (1, 2):
        own = str(tmp_path / str(inner_fold))
        configs = [TRAIN, str(trial / "overrides.json")]
        monai.bundle.run("training", config_file=configs, inner_fold=inner_fold, output_dir=own, ckpt_dir=own)
        runs.append(Path(own))
    for inner_fold, run in enumerate(runs):
        theirs = (trial / f"inner_fold-{inner_fold}" / "history.csv").read_bytes()
        assert (run / "history.csv").read_bytes() == theirs


def test_trials_that_ended_keep_their_record_and_not_their_weights(searched: tuple[Path, optuna.Study]) -> None:
    names = {path.name for path in (searched[0] / "trials" / "0000").rglob("*") if path.is_file()}
    assert {"overrides.json", "log.txt", "history.csv", "run.json"} <= names
    assert not any(name.endswith(".pt") for name in names)


@pytest.mark.slow
def test_a_metric_that_is_not_measured_is_said_with_those_that_are(refusal: Callable, tmp_path: Path) -> None:
    line = refusal(tmp_path / "hpo", metric="val_dice", n_trials=1, inner_folds=[0])
    assert line.startswith("no trial has succeeded, the last failure was: metric 'val_dice': not one of val_mean")


def test_overrides_can_add_to_the_recipe_and_refer_to_it(
    run_search: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    added = {"+initialize": ["$print('rate', @learning_rate)"], "eps": "$@learning_rate * 1e-3"}
    study = run_search(tmp_path / "hpo", overrides=added, n_trials=1, inner_folds=[0], max_epochs=1)
    trial = tmp_path / "hpo" / "trials" / "0000"
    assert f"rate {study.trials[0].params['learning_rate']}\n" in capsys.readouterr().out
    overrides = json.loads((trial / "overrides.json").read_text())
    assert {key: overrides[key] for key in added} == added


def test_a_training_that_ends_while_it_halts_says_nothing(
    coarse_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda problem: said.append(problem.exc_value))
    overrides = {"dataset_dir": str(coarse_dir), "fold": 0, "inner_fold": 0, "epochs": 2, "channels": 1}
    training = InnerFold(tmp_path, overrides)
    training.advance(1, "val_mean_dice")
    training.close()  # as if it was pruned
    del training
    gc.collect()
    assert said == []


@pytest.mark.kept
def test_keys_of_an_overlay_can_be_searched(
    coarse_dir: Path, tmp_path: Path, study_in: Callable, capsys: pytest.CaptureFixture
) -> None:
    ends = {"space#trees#low": 11, "space#trees#high": 12, "space#voxels_per_scan#high": 501}
    overlay = str(OVERLAYS / "hpo_baseline.json")
    hpo(overlay, dataset_dir=str(coarse_dir), output_dir=str(tmp_path), n_trials=1, inner_folds=[0], **ends)
    (trial,) = study_in(tmp_path).trials
    assert trial.state == TrialState.COMPLETE
    assert set(trial.params) == {"trees", "leaves", "learning_rate", "voxels_per_scan", "lesion_weight"}
    assert "configs/overlays/baseline.json'" in capsys.readouterr().out


def test_an_overlay_that_is_not_there_is_refused(refusal: Callable, tmp_path: Path) -> None:
    unknown = "overlays: overlay emma.json: no such file here or in configs/overlays/"
    assert refusal(tmp_path, overlays="emma.json") == unknown
    became = refusal(tmp_path, overlays="instance_norm.json")
    assert became == "overlays: overlay instance_norm.json: is a key now, give the override norm: instance"
    moved = refusal(tmp_path, overlays="configs/ema.json")
    assert moved == f"overlays: overlay ema.json: it is {OVERLAYS / 'ema.json'}"
