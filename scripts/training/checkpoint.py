"""Weights for use: written whole with their card, after the best validation or at the end of a training."""

from pathlib import Path

import torch
from ignite.engine import Engine, Events

from scripts.weights.checkpoint import write_weights


class CheckpointSaver:
    """Saves a network's plain ``state_dict`` and its card when an engine has completed.

    Attached to an evaluator it saves when this was the best epoch by the engine's own record, which a resume restores;
    attached to a trainer it saves the last weights. Unlike MONAI's handler of this name, it leaves the old file whole
    until the new one is, and nothing after an exception.

    Args:
        network: whose weights.
        path: file that is replaced; the card is the JSON file beside it.
        card: see ``scripts.weights.card.CARD``.
    """

    def __init__(self, network: torch.nn.Module, path: str, card: dict) -> None:
        self.network, self.path, self.card = network, path, card

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator or a trainer."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save; called when the engine has completed."""
        if engine.state.best_metric_epoch not in (-1, engine.state.epoch):  # -1: MONAI's word for no metric yet
            return
        write_weights(Path(self.path), self.network, self.card)
