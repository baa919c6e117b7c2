"""The weights of the best k and of every n-th epoch are there, whole, and no others."""

import datetime
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import restoring
from ignite.engine import Engine

from scripts.evaluation.metrics import is_gain
from scripts.networks.meshnet import MeshNet
from scripts.techniques.keep_checkpoints import KeepCheckpoints

CARD = {"spacing": [1, 1, 1]}
SCORES = [0.1, 0.5, 0.3, float("nan"), 0.5, 0.9, 0.2, 0.4]


def run(
    folder: Path,
    scores: list[float],
    best: int,
    every: int,
    restored: int = 0,
    mode: str = "max",
    min_delta: float = 0.0,
) -> list[dict]:
    """A run with these validation scores, continued after some epochs; the network's state at each epoch."""
    network, states = MeshNet(channels=2), []
    trainer, evaluator = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = "val_mean_dice"
    evaluator.metric_cmp_fn = partial(is_gain, mode=mode, min_delta=min_delta)
    trainer.state.run_log = {"rows": []}

    def log(trainer: Engine) -> None:
        torch.nn.init.constant_(network.classifier.bias, trainer.state.epoch)
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        row = {"epoch": trainer.state.epoch, "loss": 1.0}
        if trainer.state.epoch <= len(scores):
            row["val_mean_dice"] = scores[trainer.state.epoch - 1]
        trainer.state.run_log["rows"].append(row)

    restoring(trainer, log, restored)
    KeepCheckpoints(network, str(folder), CARD, evaluator, best, every).attach(trainer)
    trainer.run([0, 1], max_epochs=8)
    return states


def kept(folder: Path) -> list[int]:
    """Epochs of the files there, each of which has its card beside it."""
    names = sorted(path.name for path in (folder / "epochs").glob("*"))
    epochs = sorted(int(name[6:10]) for name in names if name.endswith(".pt"))
    assert names == sorted(f"epoch-{epoch:04d}.{kind}" for epoch in epochs for kind in ("json", "pt"))
    return epochs


@pytest.mark.parametrize(
    ("best", "every", "epochs"),
    [(3, 0, [2, 5, 6]), (2, 0, [2, 6]), (0, 3, [3, 6]), (2, 4, [2, 4, 6, 8]), (9, 7, [1, 2, 3, 5, 6, 7, 8])],
)  # fmt: skip
def test_the_best_and_every_nth_are_kept_the_earlier_of_equals(
    tmp_path: Path, best: int, every: int, epochs: list[int]
) -> None:
    states = run(tmp_path, SCORES, best, every)
    assert kept(tmp_path) == epochs
    for epoch in epochs:
        path = tmp_path / "epochs" / f"epoch-{epoch:04d}.pt"
        weights = torch.load(path, weights_only=True)
        assert all(torch.equal(weights[key], states[epoch - 1][key]) for key in weights)
        card = json.loads(path.with_suffix(".json").read_text())
        assert datetime.datetime.fromisoformat(card.pop("date")).tzinfo
        score = {"val_mean_dice": SCORES[epoch - 1]} if SCORES[epoch - 1] == SCORES[epoch - 1] else {}
        assert card == {**CARD, "epoch": epoch, "metrics": score}
    last = torch.load(tmp_path / "model_last.pt", weights_only=True)
    assert all(torch.equal(last[key], states[-1][key]) for key in last)
    assert json.loads((tmp_path / "model_last.json").read_text())["epoch"] == 8


def test_without_validation_only_every_nth_is_kept(tmp_path: Path) -> None:
    run(tmp_path, [], 3, 5)
    assert kept(tmp_path) == [5]


def test_files_of_an_earlier_run_that_is_replaced_go_and_others_stay(tmp_path: Path) -> None:
    run(tmp_path, SCORES, 99, 1)
    (tmp_path / "epochs" / "epoch-notes.txt").touch()
    run(tmp_path, SCORES, 1, 0)
    (tmp_path / "epochs" / "epoch-notes.txt").unlink()
    assert kept(tmp_path) == [6]


@pytest.mark.parametrize(
    ("mode", "min_delta", "epochs"),
    [("min", 0.0, [1, 7]), ("max", 0.0, [2, 6]), ("max", 0.15, [2, 6]), ("max", 0.5, [2, 6])],
)
def test_what_is_best_has_a_direction_and_a_least_gain(
    tmp_path: Path, mode: str, min_delta: float, epochs: list[int]
) -> None:
    run(tmp_path, SCORES, 2, 0, mode=mode, min_delta=min_delta)
    assert kept(tmp_path) == epochs
