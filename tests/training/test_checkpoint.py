"""Checkpoints are whole or not there: a kill leaves the file before it."""

import datetime
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.training.checkpoint import CheckpointSaver

CARD = {"spacing": [1, 1, 1]}


def evaluate(folder: Path, scores: list[float]) -> list[dict]:
    """A validation engine with these key metrics; the network's state at each."""
    network, states = MeshNet(channels=2), []
    saver = CheckpointSaver(network, str(folder / "model.pt"), CARD)
    engine = Engine(lambda engine, batch: None)
    saver.attach(engine)
    best = -1.0
    for epoch, score in enumerate(scores, 1):
        torch.nn.init.uniform_(network.classifier.weight)
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        if score > best:  # as MONAI's evaluator keeps it
            best, engine.state.best_metric_epoch = score, epoch
        engine.state.epoch, engine.state.metrics = epoch, {"val_mean_dice": score, "val_hd95": float("nan")}
        engine.fire_event(Events.COMPLETED)
    return states


def test_model_is_the_plain_state_of_the_best_epoch_with_its_card(tmp_path: Path) -> None:
    states = evaluate(tmp_path, [0.1, 0.7, 0.3, 0.7, 0.6])
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(weights[key], states[1][key]) for key in states[1])
    MeshNet(channels=2).load_state_dict(weights)
    card = json.loads((tmp_path / "model.json").read_text())
    assert card == {**CARD, "epoch": 2, "metrics": {"val_mean_dice": 0.7}, "date": card["date"]}
    assert abs(datetime.datetime.fromisoformat(card["date"]) - datetime.datetime.now().astimezone()).seconds < 60
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_an_unfinished_run_leaves_no_final_checkpoint(tmp_path: Path) -> None:
    def step(engine: Engine, batch: int) -> None:
        if engine.state.epoch == 2:
            raise RuntimeError("the disk of the data is gone")

    trainer = Engine(step)
    trainer.state.best_metric_epoch = -1
    CheckpointSaver(MeshNet(channels=2), str(tmp_path / "model.pt"), CARD).attach(trainer)
    with pytest.raises(RuntimeError, match="the disk of the data is gone"):
        trainer.run([0], max_epochs=3)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, save, calls = evaluate(tmp_path, [0.5]), torch.save, []

    def full_disk(checkpoint: dict, file: object) -> None:
        calls.append(checkpoint)
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(InputError, match=r"model.pt: cannot be written \(No space left on device\)"):
        evaluate(tmp_path, [0.9])
    monkeypatch.setattr(torch, "save", save)
    assert calls
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(weights[key], states[0][key]) for key in weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.pt"]
    assert json.loads((tmp_path / "model.json").read_text())["metrics"] == {"val_mean_dice": 0.5}


def test_the_old_file_stays_whole_and_in_place_while_the_new_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save, seen = tmp_path / "model.pt", torch.save, []

    def look() -> tuple[int, dict] | None:
        return (path.stat().st_ino, torch.load(path, weights_only=True)) if path.exists() else None

    def slow(checkpoint: dict, file: object) -> None:
        before = look()
        save(checkpoint, file)
        file.flush()
        seen.append((before, look()))

    monkeypatch.setattr(torch, "save", slow)
    states = evaluate(tmp_path, [0.5, 0.9])
    assert seen[0] == (None, None)
    for inode, weights in seen[1]:
        assert inode == seen[1][0][0] != path.stat().st_ino
        assert all(torch.equal(weights[key], states[0][key]) for key in states[0])
    now = torch.load(path, weights_only=True)
    assert all(torch.equal(now[key], states[1][key]) for key in states[1])


def test_a_reader_never_finds_the_file_missing(tmp_path: Path) -> None:
    evaluate(tmp_path, [0.0])
    writing = threading.Thread(target=evaluate, args=(tmp_path, [i / 100 for i in range(1, 101)]))
    writing.start()
    inodes = set()
    while writing.is_alive():
        inodes.add((tmp_path / "model.pt").stat().st_ino)
    writing.join()
    assert len(inodes) > 1  # it was replaced meanwhile


WRITER = """
import sys
import torch
from ignite.engine import Engine
from scripts.training.checkpoint import CheckpointSaver
network, engine = torch.nn.Linear(2000, 2000, bias=False), Engine(lambda engine, batch: None)
engine.state.best_metric_epoch = -1
saver = CheckpointSaver(network, sys.argv[1] + "/model.pt", {})
value = 0
while True:
    torch.nn.init.constant_(network.weight, value)
    saver(engine)
    print(value, flush=True)
    value += 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("milliseconds", [3, 7, 11, 17])
def test_a_killed_process_leaves_a_whole_file(tmp_path: Path, milliseconds: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    for _ in range(3):
        written = int(process.stdout.readline())
    time.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    values = torch.load(tmp_path / "model.pt", weights_only=True)["weight"]
    assert values.unique().numel() == 1
    assert values[0, 0] >= written
    left = {re.sub(r"^\.(.*)\.\w+\.tmp$", r"\1", p.name) for p in tmp_path.iterdir()}
    assert left <= {"model.pt", "model.json"}
