"""Weights for use: written whole with their card, after the best validation or at the end of a training."""

import datetime
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from scripts.weights.checkpoint import write_weights


def dated(card: dict, epoch: int, values: dict) -> dict:
    """The card of weights of an ``epoch``, with the ``metrics`` among its ``values`` (val_...), and the date of now."""
    metrics = {name: float(value) for name, value in values.items() if name.startswith("val_") and isfinite(value)}
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return {**card, "epoch": epoch, "metrics": metrics, "date": date}


@dataclass(eq=False)
class CheckpointSaver:
    """Saves a network's plain ``state_dict`` and its card when an engine has completed.

    Attached to an evaluator it saves when this was the best epoch by the engine's own record, which a resume restores;
    attached to a trainer it saves the last weights. The card gets the epoch, its metrics and the date. The old file
    stays whole until the new one is, and nothing is written after an exception.
    """

    network: torch.nn.Module
    path: str  # file that is replaced; the card is the JSON file beside it
    card: dict  # see ``scripts.weights.card.CARD``

    @idist.one_rank_only()
    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save; called when the engine has completed."""
        if engine.state.best_metric_epoch not in (-1, engine.state.epoch):  # -1: MONAI's word for no metric yet
            return
        write_weights(Path(self.path), self.network, dated(self.card, engine.state.epoch, engine.state.metrics))
