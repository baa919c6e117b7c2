"""The tables of a comparison hold every run and every subject, and the means are theirs."""

import statistics
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas
import pytest

from scripts.comparison.plan import Run
from scripts.comparison.report import _csv, report


@pytest.mark.slow
def test_every_planned_run_is_in_the_csv_with_the_mean_of_its_scans(compared: Path) -> None:
    runs, subjects = (pandas.read_csv(compared / f"{name}.csv") for name in ("runs", "subjects"))
    assert len(runs) == 12
    assert {*runs["state"]} == {"COMPLETE"}
    for run in runs.to_dict("records"):
        last = "ensemble-2" if pandas.isna(run["restart"]) else f"restart-{run['restart']:.0f}"
        own = pandas.read_csv(compared / run["network"] / f"fold-{run['fold']}" / last / "metrics.csv")
        assert run["scans"] == len(own) == 3
        for metric in ("dice", "dice_with_background", "avd", "mcc"):
            assert run[metric] == pytest.approx(statistics.fmean(own[metric]), rel=1e-7, abs=1e-5)  # 8 digits
    assert len(subjects) == 12 * 3
    assert {"row", "network", "fold", "restart", "subject", "dice", "predicted_volume"} <= {*subjects}
    alone = runs[runs["restart"].notna()]
    assert (alone["train_seconds"] > 0).all()
    assert (runs["scan_seconds"] > 0).all()


@pytest.mark.slow
def test_what_is_missing_is_said(
    compared: Path, plan_of: Callable, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, folds=[0], restarts=1)
    plan.check()
    study = optuna.create_study(direction="maximize")
    who = {"network": "wide", "fold": 0, "restart": 0, "members": 1, "reason": "no memory"}
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=who))
    report(plan, study)
    assert capsys.readouterr().out.splitlines()[:2] == [
        "missing: thin/fold-0/restart-0 (not begun)",
        "missing: wide/fold-0/restart-0 (fail no memory)",
    ]
    run = Run("thin", 0, 0)
    (tmp_path / run.name).parent.mkdir(parents=True)
    (tmp_path / run.name).symlink_to(compared / run.name)
    report(plan, study)
    out = capsys.readouterr().out
    assert "| MeshNet-5 | 274 |" in out
    assert "1 of 2 runs are done" in out
    assert "| 1 of 1 |" in out


def test_a_small_p_is_written_with_its_digits(tmp_path: Path) -> None:
    _csv(pandas.DataFrame({"row": ["wide"], "n": [60], "p": [2.4567e-10], "dice": [0.8765432]}), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "row,n,p,dice\nwide,60,2.4567e-10,0.8765432\n"
