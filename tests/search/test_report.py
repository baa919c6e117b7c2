"""A study's results are readable by people: the best trials, the winner's command, and pictures of what happened."""

import re
from pathlib import Path

import numpy as np
import optuna
import pandas
import pytest
from conftest import OVERLAYS

from scripts.search.report import plot_heatmap, report, two_most_important

GRID_X = (0.1, 0.2, 0.3, 0.7)
NAMES = ("learning_curves", "optimization_history", "param_importances")


@pytest.fixture
def study() -> optuna.Study:
    """Twelve trials of x; those whose x is small are pruned at epoch 1, one fails."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.suggest_categorical("y", ["a", "b"])
        trial.set_user_attr("overrides", f"/trials/{trial.number:04d}/overrides.json")
        if trial.number == 5:
            raise ValueError("no")
        for epoch in (1, 2, 3):
            trial.report(x * epoch, epoch)
            if x < 0.3:
                raise optuna.TrialPruned
        return 3 * x

    study.optimize(objective, n_trials=12, catch=ValueError)
    return study


def test_table_command_and_pictures(study: optuna.Study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report(study, tmp_path, "dice")
    lines = capsys.readouterr().out.splitlines()
    values = sorted((3 * t.params["x"] for t in study.trials if t.state.name == "COMPLETE"), reverse=True)
    assert lines[0].split() == ["trial", "dice", "x", "y"]
    assert [float(line.split()[1]) for line in lines[1:6]] == pytest.approx(values[:5], abs=1e-4)
    assert f"/trials/{study.best_trial.number:04d}/overrides.json'" in lines[-1]
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(pictures) == {f"{name}.png" for name in ("contour", *NAMES, "slice")}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())


def test_every_trial_is_in_the_csv_with_its_state(study: optuna.Study, tmp_path: Path) -> None:
    report(study, tmp_path, "dice")
    table = pandas.read_csv(tmp_path / "trials.csv")
    assert table["number"].tolist() == list(range(12))
    assert table["state"].tolist() == [trial.state.name for trial in study.trials]
    assert table.loc[5, "state"] == "FAIL"
    assert pandas.isna(table.loc[5, "value"])


def test_one_complete_trial_has_a_curve_and_nothing_to_be_compared_with(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
    trial.set_user_attr("overrides", "overrides.json")
    trial.report(2.0, 1)
    study.tell(trial, 2.0)
    report(study, tmp_path, "dice")
    assert [path.name for path in tmp_path.glob("*.png")] == ["learning_curves.png"]


def test_a_study_without_a_complete_trial_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report(optuna.create_study(), tmp_path, "dice")
    assert capsys.readouterr().out == "No trial has completed yet\n"
    assert [path.name for path in tmp_path.iterdir()] == ["trials.csv"]


def grid_study() -> optuna.Study:
    """A grid of three parameters, whose value 10 x + y hardly depends on z."""
    grid = {"z": [0.0, 1.0], "y": [1, 2, 4], "x": [*GRID_X]}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler(grid, seed=0))

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("overrides", "overrides.json")
        z, y, x = trial.suggest_float("z", 0, 1), trial.suggest_int("y", 1, 4), trial.suggest_float("x", 0, 1)
        return 10 * x + y + 0.01 * z

    study.optimize(objective)
    return study


def test_a_grid_has_a_heatmap_of_the_two_parameters_that_matter(tmp_path: Path) -> None:
    study = grid_study()
    assert two_most_important(study) == ["x", "y"]
    axes = plot_heatmap(study, ["x", "y"])
    shown = axes.get_images()[0].get_array()
    assert np.asarray(shown) == pytest.approx(np.array([[10 * x + y + 0.005 for y in (1, 2, 4)] for x in GRID_X]))
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("x", "y")
    report(study, tmp_path, "dice")
    assert (tmp_path / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "contour.png").exists()


def test_the_command_for_the_winner_names_the_overlays(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report(grid_study(), tmp_path, "dice", [str(OVERLAYS / "baseline.json")])
    files = re.search(r'--config_file "(\[.*?\])"', capsys.readouterr().out)[1]
    assert [Path(name).name for name in eval(files)] == ["train.json", "baseline.json", "overrides.json"]
