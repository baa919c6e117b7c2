"""A dry run says which runs there are and how long they take, and writes nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import refused


def test_a_dry_run_prints_runs_and_hours_and_trains_nothing(
    compare: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    compare(tmp_path / "protocol", dry_run=True, epochs=3)
    out = capsys.readouterr().out
    thin = next(line for line in out.splitlines() if line.startswith("thin "))
    name, parameters, paper, runs, steps, seconds, _ = thin.split()
    assert (name, parameters, paper, runs, steps) == ("thin", "274", "5,682", "4", "18")  # 3 epochs of 6 scans
    assert 0 < float(seconds) < 60
    assert "wide/fold-1/restart-1\n" in out
    assert "thin/fold-0/ensemble-2\n" in out
    assert not (tmp_path / "protocol").exists()


def test_hours_are_of_the_steps_of_an_assumed_cohort_and_device(
    compare: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = {"dry_run": True, "dataset_dir": str(tmp_path / "not there"), "assumed_scans": 223, "restarts": 10}
    flags |= {"epochs": 50, "folds": [0, 1, 2]}
    flags["seconds_per_step"] = {"thin": 0.36, "wide": 0.72}
    compare(tmp_path / "protocol", **flags)
    out = capsys.readouterr().out
    hours = {line.split()[0]: line.split()[-1] for line in out.splitlines() if re.match("(thin|wide) ", line)}
    steps = 30 * 50 * (223 - 223 // 3)
    assert hours == {"thin": f"{steps * 0.36 / 3600:.2f}", "wide": f"{steps * 0.72 / 3600:.2f}"}
    assert f"{steps * 1.08 / 3600:.1f} hours of training on an assumed device" in out


def test_a_step_is_one_of_the_recipes_trainer(compare: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The slow one's update sleeps; the cohort is assumed, so batches are random; an overlay's handlers stay out."""
    slow = "$lambda trainer, batch: (__import__('time').sleep(1), {'loss': torch.zeros(1)})[1]"
    slow_one = {"name": "slow", "overrides": {"channels": 1, "train#trainer#iteration_update": slow}}
    flags = {"dataset_dir": str(tmp_path / "not there"), "assumed_scans": 6, "assumed_grid": [16, 16, 16]}
    networks = [slow_one, {"name": "plain", "overlays": ["progressive.json"], "overrides": {"channels": 1}}]
    compare(tmp_path / "protocol", dry_run=True, networks=networks, reference="slow", **flags)
    lines = capsys.readouterr().out.splitlines()
    slow, plain = (next(line for line in lines if line.startswith(f"{name} ")).split() for name in ("slow", "plain"))
    assert float(slow[5]) >= 1
    assert float(plain[5]) > 0
    assert slow[4] == plain[4] == "4"  # of 6 scans two thirds are trained on


def test_a_network_without_its_assumed_seconds_is_a_line(compare: Callable, tmp_path: Path) -> None:
    with refused("^seconds_per_step: wide has None; expected a number above 0, or one for each network$"):
        compare(tmp_path / "protocol", dry_run=True, seconds_per_step={"thin": 0.1})
