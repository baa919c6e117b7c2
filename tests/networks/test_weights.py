"""Checkpoints are whole or not there: a kill leaves the file before it; weights that do not fit are one line."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.networks.weights import CheckpointLoader, CheckpointSaver, read_card

ROOT = Path(__file__).resolve().parents[2]
CARD = {"channels": 2, "spacing": [1, 1, 1], "spatial_size": [8, 8, 8]}


def evaluate(folder: Path, scores: list[float], card: dict | None = CARD) -> list[dict]:
    """A validation engine with these key metrics; the network's state at each."""
    network, states = MeshNet(channels=2), []
    saver = CheckpointSaver(
        save_dir=str(folder),
        save_dict={"network": network},
        save_key_metric=True,
        key_metric_name="score",
        key_metric_filename="model.pt",
        card=card,
    )
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.EPOCH_COMPLETED)
    def score(engine: Engine) -> None:
        torch.nn.init.uniform_(network.classifier.weight)
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        engine.state.metrics["score"] = scores[engine.state.epoch - 1]

    saver.attach(engine)
    engine.run([0], max_epochs=len(scores))
    return states


def test_model_is_the_plain_state_of_the_best_epoch_with_its_card(tmp_path: Path) -> None:
    states = evaluate(tmp_path, [0.1, 0.7, 0.3, 0.7, 0.6])
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(weights[key], states[1][key]) for key in states[1])
    MeshNet(channels=2).load_state_dict(weights)
    assert read_card(str(tmp_path / "model.pt")) == CARD
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_an_unfinished_run_leaves_no_final_checkpoint(tmp_path: Path) -> None:
    def step(engine: Engine, batch: int) -> None:
        if engine.state.epoch == 2:
            raise RuntimeError("the disk of the data is gone")

    trainer, save_dict = Engine(step), {"network": MeshNet(channels=2)}
    CheckpointSaver(save_dir=str(tmp_path), save_dict=save_dict, save_final=True, final_filename="model.pt").attach(
        trainer
    )
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
    assert read_card(str(tmp_path / "model.pt")) == CARD


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
from scripts.networks.weights import _AtomicDiskSaver
saver = _AtomicDiskSaver(sys.argv[1], "model.pt", None)
value = 0
while True:
    saver({"weights": torch.full((4_000_000,), float(value))}, "ignored")
    print(value, flush=True)
    value += 1
"""


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
    values = torch.load(tmp_path / "model.pt", weights_only=True)["weights"]
    assert values.unique().numel() == 1
    assert values[0] >= written
    assert {p.name for p in tmp_path.iterdir()} <= {"model.pt", ".model.pt.tmp"}


def load_into(network: torch.nn.Module, path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    CheckpointLoader(str(path), {"network": network}).attach(engine)
    engine.run([0])


def test_loader_loads(tmp_path: Path) -> None:
    states, network = evaluate(tmp_path, [0.5]), MeshNet(channels=2)
    load_into(network, tmp_path / "model.pt")
    assert all(torch.equal(network.state_dict()[key], states[0][key]) for key in states[0])


def test_loader_takes_the_network_out_of_a_file_with_more(tmp_path: Path) -> None:
    trained, network = MeshNet(channels=2), MeshNet(channels=2)
    torch.save({"network": trained.state_dict(), "format": 1}, tmp_path / "checkpoint_last.pt")
    load_into(network, tmp_path / "checkpoint_last.pt")
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("fold", "refused"), [(0, False), (1, True)])
def test_weights_trained_on_the_test_fold_are_refused(tmp_path: Path, fold: int, refused: bool) -> None:
    evaluate(tmp_path, [0.5], card={**CARD, "cohort": "ARC", "fold": 0})
    engine, network = Engine(lambda engine, batch: None), MeshNet(channels=2)
    held_out = {"cohort": "ARC", "fold": fold}
    CheckpointLoader(str(tmp_path / "model.pt"), {"network": network}, held_out=held_out).attach(engine)
    if refused:
        with pytest.raises(InputError, match=r"trained with fold 0 held out, so on scans of fold 1.* pass --fold 0$"):
            engine.run([0])
    else:
        engine.run([0])


def test_a_checkpoint_that_was_cut_short_is_one_line(tmp_path: Path) -> None:
    evaluate(tmp_path, [0.5])
    content = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"model.pt: not a torch checkpoint \(") as error:
        load_into(MeshNet(channels=2), tmp_path / "model.pt")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (
            MeshNet(channels=5),
            r"weights of another width, layers.0.0.weight is \(2, .* pass --channels 2$",
        ),
        (MeshNet(channels=2, dilations=(1, 2)), r"not weights of this network \(the network has no layers.2"),
        (torch.nn.Linear(2, 2), r"not weights of this network \(the file has no weight\)"),
    ],
)
def test_weights_of_another_network_are_one_line(tmp_path: Path, network: torch.nn.Module, line: str) -> None:
    evaluate(tmp_path, [0.5])
    with pytest.raises(InputError, match=f"model.pt: {line}") as error:
        load_into(network, tmp_path / "model.pt")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no such file; train first, or give the weights with --ckpt_path"),
        (b"", "not a torch checkpoint"),
        (b"hello", "not a torch checkpoint"),
        (b"PK\x03\x04 and no more", "not a torch checkpoint"),
    ],
)
def test_files_that_are_no_weights_are_one_line(tmp_path: Path, content: bytes | None, line: str) -> None:
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=f"model.pt: {line}") as error:
        load_into(MeshNet(channels=2), tmp_path / "model.pt")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", [None, "{", "{}", json.dumps({"channels": 2})])
def test_a_missing_or_incomplete_card_says_what_to_write(tmp_path: Path, text: str | None) -> None:
    evaluate(tmp_path, [0.5], card=None)
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(
        InputError, match=r'model.json: the weights\' card is missing or incomplete .* \{"channels": 26'
    ):
        read_card(str(tmp_path / "model.pt"))


def test_a_card_without_weights_says_to_train_first(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(CARD))
    with pytest.raises(InputError, match=r"model.pt: no such file; train first \(python -m monai.bundle run training"):
        read_card(str(tmp_path / "model.pt"))
