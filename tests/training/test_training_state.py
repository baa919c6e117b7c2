"""A run that is killed, stopped or out of disk continues as if nothing had happened, to the last bit."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import TRAIN, small_disk_at
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from training.processes import start

from scripts.data.cohort import Cohort
from scripts.training.run_folder import RunFolder
from scripts.training.run_log import RunLog
from scripts.training.training_state import TrainingState

EPOCHS = 60
# Everything that draws random numbers, so that a state which forgets one of them cannot pass.
OVERLAY = {
    "train#random_transforms": [
        {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0},
        {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5},
    ]
}


def overrides_of(cohort_dir: Path, folder: Path, **more: object) -> dict:
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "augment.json").write_text(json.dumps(OVERLAY))
    return {
        "config_file": [TRAIN, str(folder / "configs" / "augment.json")],
        "dataset_dir": str(cohort_dir),
        "output_dir": str(folder / "eval"),
        "ckpt_dir": str(folder / "models"),
        "channels": 2,
        "dropout": 0.2,
        "epochs": EPOCHS,
        "spacing": [16.0] * 3,  # what is tested takes no fine grid
        "spatial_size": [16] * 3,
        "batch_size": 2,
        "learning_rate": 0.02,
        "resume": True,
        "report": False,
        **more,
    }


def results(folder: Path) -> dict[str, bytes | dict]:
    """What must not depend on interruptions: weights, best weights, their card and the history."""
    state = torch.load(folder / "models" / "checkpoint_last.pt", weights_only=True)
    return {
        "last": {key: value.numpy().tobytes() for key, value in state["network"].items()},
        "optimizer": [[float(v["step"]), v["exp_avg"].numpy().tobytes()] for v in state["optimizer"]["state"].values()],
        "best": state["best"],
        "model.pt": {k: v.numpy().tobytes() for k, v in torch.load(folder / "models" / "model.pt").items()},
        "model.json": json.loads((folder / "models" / "model.json").read_text()) | {"date": None},
        "history": (folder / "eval" / "history.csv").read_bytes(),
    }


def run_to_its_end(overrides: dict, exitcode: int = 0) -> None:
    process = start(overrides)
    process.join()
    assert process.exitcode == exitcode


@pytest.mark.kept
def test_killed_once_the_run_ends_bit_identical(cohort_dir: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_to_its_end(overrides_of(cohort_dir, whole, epochs=4))
    process = start(overrides_of(cohort_dir, cut, epochs=4))
    wait_for((cut / "models" / "checkpoint_last.pt").exists, process)
    process.kill()
    process.join()
    done = torch.load(cut / "models" / "checkpoint_last.pt", weights_only=True)["trainer"]["iteration"]
    assert 0 < done < 4 * 5
    run_to_its_end(overrides_of(cohort_dir, cut, epochs=4))
    assert results(cut) == results(whole)


@pytest.fixture(scope="module")
def undisturbed(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_to_its_end(overrides_of(cohort_dir, folder))
    return results(folder)


def assert_whole(folder: Path) -> None:
    """Whatever is there can be read."""
    for name in ("checkpoint_last.pt", "model.pt"):
        path = folder / "models" / name
        if path.exists():
            torch.load(path, weights_only=True)
    history = folder / "eval" / "history.csv"
    if history.exists():
        assert all(line.count(",") == 6 for line in history.read_text().splitlines())


def wait_for(happened: Callable[[], object], process: multiprocessing.Process, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.0002)


@pytest.mark.slow
def test_killed_twenty_times_at_random_the_run_ends_bit_identical(
    cohort_dir: Path, tmp_path: Path, undisturbed: dict
) -> None:
    overrides, rng, half_written = overrides_of(cohort_dir, tmp_path), random.Random(0), 0
    state = tmp_path / "models" / "checkpoint_last.pt"
    for kill in range(20):
        before = state.stat().st_mtime_ns if state.exists() else 0
        left = {*(tmp_path / "models").glob(".*.tmp")}
        process = start(overrides)
        if kill % 2:  # in the middle of a write
            wait_for(lambda left=left: {*(tmp_path / "models").glob(".*.pt.*.tmp")} - left, process)
        else:  # anywhere after some progress, start-up and validation included
            if kill % 4:
                wait_for(lambda before=before: state.exists() and state.stat().st_mtime_ns > before, process)
            time.sleep(rng.uniform(0, 0.4))
        assert process.is_alive(), f"finished before kill {kill}: more epochs are needed"
        process.kill()
        process.join()
        half_written += bool({*(tmp_path / "models").glob(".*.tmp")} - left)
        assert_whole(tmp_path)
    assert half_written >= 1
    run_to_its_end(overrides)
    assert results(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_saves_at_once_and_loses_no_step(
    cohort_dir: Path, tmp_path: Path, undisturbed: dict, number: int
) -> None:
    overrides, rng, iterations = overrides_of(cohort_dir, tmp_path), random.Random(int(number)), []
    log = tmp_path / "eval.log"
    while len(iterations) < 4 or not any(iteration % 5 for iteration in iterations):  # an epoch has 5: inside of one
        assert len(iterations) < 20
        log.unlink(missing_ok=True)
        process = start(overrides)
        wait_for(lambda: log.exists() and b"Training" in log.read_bytes(), process)
        time.sleep(rng.uniform(0.05, 0.5))
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == 128 + number
        state = torch.load(tmp_path / "models" / "checkpoint_last.pt", weights_only=True)
        iterations.append(state["trainer"]["iteration"])
        assert state["card"]["epoch"] == iterations[-1] // 5  # those that have ended
    assert iterations == sorted(iterations)
    run_to_its_end(overrides)
    assert results(tmp_path) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    with small_disk_at(tmp_path / "disk", "400k") as disk:
        yield disk


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_continues_bit_identical(
    cohort_dir: Path, tmp_path: Path, small_disk: Path, undisturbed: dict
) -> None:
    overrides = overrides_of(cohort_dir, tmp_path, ckpt_dir=str(small_disk / "models"))
    (tmp_path / "models").symlink_to(small_disk / "models")
    ballast, state = small_disk / "ballast", small_disk / "models" / "checkpoint_last.pt"
    ballast.touch()
    process = start(overrides)
    wait_for(state.exists, process)
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while True:  # somebody else's file takes the rest
            file.write(b"x" * 1000)
    process.join()
    assert process.exitcode == 1
    last = (tmp_path / "eval.log").read_text().splitlines()[-1]
    assert last.startswith(f"{small_disk}/models/")
    assert "cannot be written (" in last
    assert_whole(tmp_path)
    assert not list((small_disk / "models").glob(".*.tmp"))
    ballast.unlink()
    run_to_its_end(overrides)
    assert results(tmp_path) == undisturbed


@pytest.mark.kept
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_scans(cohort_dir: Path, tmp_path: Path) -> None:
    run_to_its_end(overrides_of(cohort_dir, tmp_path, learning_rate=1e30, warmup_fraction=0.0), exitcode=1)
    last = (tmp_path / "eval.log").read_text().splitlines()[-1]
    found = re.fullmatch(
        r"epoch (\d+), learning rate (\S+): the loss is (nan|inf) for (.*); the state is in (.*)", last
    )
    assert found, last
    scans = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    images = {str(cohort_dir / scan["image"]) for scan in scans}
    assert set(found[4].split(", ")) <= images
    assert len(found[4].split(", ")) == 2  # the batch
    state = torch.load(found[5], weights_only=True)
    assert state["trainer"]["iteration"] >= 1
    assert Path(found[5]).name == "checkpoint_failed.pt"


@pytest.mark.slow
def test_two_runs_are_bit_identical_with_and_without_workers(cohort_dir: Path, tmp_path: Path) -> None:
    runs = []
    for run, workers in (("first", 0), ("again", 0), ("workers", 2)):
        run_to_its_end(overrides_of(cohort_dir, tmp_path / run, num_workers=workers, epochs=4))
        runs.append(results(tmp_path / run))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.slow
def test_the_command_stops_on_sigterm_with_143_and_says_how_to_go_on(cohort_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", TRAIN, "--channels", "2"]
    folders = ["--dataset_dir", cohort_dir, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models"]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([*command, *map(str, folders)], cwd=tmp_path, stdout=log, stderr=log)
    while not (tmp_path / "models" / "checkpoint_last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait() == 143
    text = (tmp_path / "log").read_text()
    assert "--resume true continues" in text
    assert "Traceback" not in text


def test_skipped_fp16_steps_are_counted_and_the_scaler_belongs_to_the_state(tmp_path: Path) -> None:
    """With an enabled scaler, which MONAI makes on CUDA only, put in by hand."""

    def make_trainer() -> SupervisedTrainer:
        torch.manual_seed(0)
        network = torch.nn.Conv3d(1, 1, 1)
        data = DataLoader([{"image": torch.rand(1, 4, 4, 4), "label": torch.rand(1, 4, 4, 4)}] * 4)
        cpu, folder = torch.device("cpu"), str(tmp_path)
        evaluator = SupervisedEvaluator(device=cpu, val_data_loader=data, network=network)
        run_folder = RunFolder(folder, folder, {}, "abc")
        cohort = Cohort("c", False, (1,) * 3, (4,) * 3, [], [], [], "")
        log = RunLog(cohort, ((1,) * 3, (4,) * 3), evaluator, run_folder, "model.pt")
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        save_dict = {"network": network, "optimizer": optimizer}
        return SupervisedTrainer(
            device=cpu, amp=True, max_epochs=2, train_data_loader=data, network=network, optimizer=optimizer,
            loss_function=lambda pred, label: 1e4 * (pred - label).square().mean(),
            train_handlers=[log, TrainingState(save_dict, run_folder, evaluator)],
        )  # fmt: skip

    engine = make_trainer()

    @engine.on(Events.STARTED)
    def enable(engine: SupervisedTrainer) -> None:
        engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)  # overflows at once

    engine.run()
    rows = (tmp_path / "history.csv").read_text().splitlines()
    skipped = [int(row.split(",")[-1]) for row in rows[1:]]
    assert skipped[0] > 0
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["scaler"]["scale"] == 2.0 ** (127 - sum(skipped))  # halved for each
    assert state["scaler"] == engine.scaler.state_dict()


def test_a_rank_stops_by_another_s_signal_after_the_same_step_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = []

    def highest(vote: int, op: str) -> int:
        """What rank 1 of 2 gets where rank 0 was told to stop in its third step."""
        votes.append((vote, op))
        return signal.SIGTERM if len(votes) == 3 else vote

    for name, value in {"get_rank": 1, "get_world_size": 2, "barrier": None}.items():
        monkeypatch.setattr(f"ignite.distributed.{name}", lambda value=value: value)
    monkeypatch.setattr("ignite.distributed.utils.get_rank", lambda: 1)
    monkeypatch.setattr("ignite.distributed.all_reduce", highest)
    monkeypatch.setattr("ignite.distributed.all_gather", lambda own: [own, own])
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
    trainer.register_events(*IterationEvents)
    trainer.accumulation_steps = 1
    TrainingState({}, RunFolder(str(tmp_path), str(tmp_path), {}, "abc"), evaluator).attach(trainer)
    with pytest.raises(SystemExit) as stop:
        trainer.run([0, 1, 2, 3], max_epochs=2)
    assert stop.value.code == 128 + signal.SIGTERM
    assert trainer.state.iteration == 3
    assert votes == [(0, "MAX")] * 3
    assert not list(tmp_path.iterdir())
