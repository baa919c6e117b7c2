"""Each run of a comparison is done once, however often its workers are stopped or killed."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from conftest import refused
from optuna.trial import TrialState

from scripts.comparison import run as runs
from scripts.comparison.plan import Run
from scripts.comparison.run import run_of

pytestmark = pytest.mark.usefixtures("undrawn")


def trials_of(url: str, study_name: str = "default") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=study_name, storage=url).trials


@pytest.fixture
def start(coarse_dir: Path, start_command: Callable) -> Callable[..., subprocess.Popen]:
    """Start the comparison in a process of its own."""

    def run(folder: Path, log: Path, overlay: dict, **flags: object) -> subprocess.Popen:
        path = log.parent / "overlay.json"
        path.write_text(json.dumps(overlay))
        flags = {"overlay": path, "dataset_dir": coarse_dir, "output_dir": folder, **flags}
        return start_command("protocol.py", log, flags)

    return run


@pytest.mark.slow
def test_all_runs_are_done_once(compared: Path) -> None:
    trials = trials_of(f"sqlite:///{compared}/study.db")
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({run_of(trial) for trial in trials}) == len(trials) == 2 * 2 * 2 + 2 * 2
    for trial in trials:
        result = json.loads((compared / run_of(trial).name / "result.json").read_text())
        assert trial.value == pytest.approx(result["dice"])


@pytest.mark.slow
def test_stopped_within_a_training_it_goes_on_and_ends_as_if_it_had_not_been(
    compare: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"only": "wide", "reference": "wide", "folds": [0], "epochs": 3}
    whole = compare(tmp_path / "whole", **flags)
    train, epochs = runs._train, iter(range(1, 9))

    def train_and_signal(recipe: object, after_epoch: Callable) -> None:
        def stop(**shown: object) -> None:
            if next(epochs) == 3:
                signal.raise_signal(signal.SIGTERM)
            after_epoch(**shown)

        train(recipe, stop)

    monkeypatch.setattr(runs, "_train", train_and_signal)
    with pytest.raises(SystemExit, match="143"):
        compare(tmp_path / "stopped", **flags)
    states = [trial.state for trial in trials_of(f"sqlite:///{tmp_path}/stopped/study.db")]
    assert states == [TrialState.COMPLETE, TrialState.WAITING]
    compare(tmp_path / "stopped", **flags)
    for name in ("wide/fold-0/restart-0", "wide/fold-0/restart-1", "wide/fold-0/ensemble-2"):
        assert (tmp_path / "stopped" / name / "metrics.csv").read_text() == (whole / name / "metrics.csv").read_text()
    record = json.loads((tmp_path / "stopped" / "wide" / "fold-0" / "restart-1" / "run.json").read_text())
    assert len(record["continued"]) == 1
    assert len(trials_of(f"sqlite:///{tmp_path}/stopped/study.db")) == 3


@pytest.mark.slow
def test_networks_and_restarts_can_be_added_and_what_is_done_stays(compare: Callable, tmp_path: Path) -> None:
    folder = compare(tmp_path / "protocol", only="thin", folds=[0], restarts=1)
    first = folder / "thin" / "fold-0" / "restart-0" / "model.pt"
    written = first.stat().st_mtime_ns
    teacher = f"{folder}/thin/fold-0/restart-0/model.pt"
    said = "$print('taught by {output_dir}/thin/fold-{fold}/restart-{restart}/model.pt')"
    student = {"name": "student", "overrides": {"channels": 1, "+initialize": [said]}}
    compare(folder, networks=[{"name": "thin", "paper": "MeshNet-5", "overrides": {"channels": 1}}, student], folds=[0])
    trials = trials_of(f"sqlite:///{folder}/study.db")
    done = [run_of(trial) for trial in trials if trial.state == TrialState.COMPLETE]
    assert len({*done}) == len(done) == 2 * 2 + 2
    for restart in (0, 1):
        assert done.index(Run("thin", 0, restart)) < done.index(Run("student", 0, restart))
    assert first.stat().st_mtime_ns == written
    record = json.loads((folder / "student" / "fold-0" / "restart-0" / "run.json").read_text())
    assert teacher in record["overrides"]["initialize"][-1]


@pytest.mark.slow
def test_another_network_under_the_same_name_is_refused(compare: Callable, compared: Path) -> None:
    with refused("^thin: was {'name': 'thin', "):
        compare(compared, networks=[{"name": "thin", "overrides": {"channels": 3}}], only="thin")
    with refused(r"began with other settings \(epochs was 1 and is 7\)"):
        compare(compared, epochs=7)


@pytest.mark.slow
def test_what_failed_is_tried_again_by_the_next_command(
    compare: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    evaluate = runs._evaluate

    def fail_once(recipe: object, folder: Path) -> dict:
        if folder.parts[-3] == "wide" and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise OSError("a disk is gone")
        return evaluate(recipe, folder)

    monkeypatch.setattr(runs, "_evaluate", fail_once)
    flags = {"folds": [0], "restarts": 1}
    folder = compare(tmp_path / "protocol", **flags)
    assert "missing: wide/fold-0/restart-0 (fail oserror: a disk is gone)" in capsys.readouterr().out
    compare(folder, **flags)
    assert "2 of 2 runs are done" in capsys.readouterr().out
    states = [trial.state for trial in trials_of(f"sqlite:///{folder}/study.db")]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


@pytest.mark.postgres
@pytest.mark.slow
def test_two_workers_one_killed_lose_no_run_and_do_none_twice(start: Callable, tmp_path: Path, postgres: str) -> None:
    overlay = {
        "networks": [{"name": name, "overrides": {"channels": i + 1}} for i, name in enumerate(("thin", "wide"))],
        "overrides": {"amp": False},
    }
    flags = {"storage": postgres, "study_name": "compared", "heartbeat_interval": 3, "epochs": 3, "restarts": 2}
    flags |= {"reference": "thin", "only": "thin,wide", "folds": "[0]"}
    folder, workers = tmp_path / "protocol", []
    for i in range(2):
        workers.append(start(folder, tmp_path / f"log{i}", overlay, **flags))
    deadline = time.monotonic() + 300
    running = []
    while len(running) < 2:  # both are at work
        assert time.monotonic() < deadline
        time.sleep(0.1)
        if any(folder.rglob("checkpoint_last.pt")):
            running = [t for t in trials_of(postgres, "compared") if t.state == TrialState.RUNNING]
    workers[0].kill()
    assert workers[1].wait(300) == 0, (tmp_path / "log1").read_text()[-2000:]
    trials = trials_of(postgres, "compared")
    done = [run_of(trial) for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(done) == len({*done}) == 2 * 2 + 2
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED}
    assert not [t for t in trials if t.state == TrialState.FAIL and "reason" in t.user_attrs]
    killed = [run_of(trial) for trial in trials if trial.state == TrialState.FAIL]
    assert len(killed) == 1
    assert "6 of 6 runs are done" in (tmp_path / "log1").read_text()
