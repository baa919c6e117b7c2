"""Measure a metric on the training scans; the log keeps it, also within an epoch that is resumed."""

from collections.abc import Callable
from statistics import fmean

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents


class TrainingMetric:
    """Measures what the network says of the scans that it is trained on, before the step; a column of ``history.csv``.

    Args:
        name: of the column.
        metric_fn: of logits (1, C, D, H, W) and classes (1, 1, D, H, W), gives a number.
    """

    def __init__(self, name: str, metric_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.name, self.metric_fn = name, metric_fn

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, trainer: Engine) -> None:
        """Measure; called when a mini-batch's items are apart."""
        items = trainer.state.output
        labels = [(item["label"][None, -1:] > 0.5).float() for item in items]  # the last channel is the lesion, if soft
        values = [float(self.metric_fn(item["pred"][None], label)) for item, label in zip(items, labels, strict=True)]
        trainer.state.terms[self.name] = fmean(values)
