"""Measure a metric on the training scans; the log keeps it, also within an epoch that is resumed."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents


@dataclass(eq=False)
class TrainingMetric:
    """Measures what the network says of the scans that it is trained on, before the step: a column of the history."""

    name: str  # of the column
    metric_fn: Callable[
        [torch.Tensor, torch.Tensor], torch.Tensor
    ]  # of logits (1, C, D, H, W), classes (1, 1, D, H, W)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, trainer: Engine) -> None:
        """Measure; called when a mini-batch's items are apart."""
        items = trainer.state.output
        labels = [(item["label"][None, -1:] > 0.5).float() for item in items]  # the last channel is the lesion, if soft
        values = [float(self.metric_fn(item["pred"][None], label)) for item, label in zip(items, labels, strict=True)]
        trainer.state.terms[self.name] = fmean(values)
