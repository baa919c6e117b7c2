"""MONAI's metrics forget on resume what an epoch has had: a metric of the training scans goes into the log's terms."""

from collections.abc import Callable

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
        labels = [item["label"][None] for item in trainer.state.output]
        labels = [label.argmax(1, keepdim=True) if label.shape[1] > 1 else label for label in labels]  # soft ones
        values = [
            float(self.metric_fn(item["pred"][None], label))
            for item, label in zip(trainer.state.output, labels, strict=True)
        ]
        trainer.state.terms[self.name] = sum(values) / len(values)
