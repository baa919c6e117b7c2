"""Weights for use are those of the best epoch, with their card."""

import datetime
import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

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
