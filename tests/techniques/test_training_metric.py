"""An epoch's metric of training is the mean over its scans of what the network said before each step."""

import pytest
import torch
from ignite.engine import Engine
from monai.metrics import DiceHelper

from scripts.techniques.training_metric import TrainingMetric

DICE = DiceHelper(apply_argmax=True, include_background=False, ignore_empty=False, get_not_nans=False)


def dice_of(pred: torch.Tensor, true: torch.Tensor) -> float:
    return 2 * float((pred & true).sum()) / float(pred.sum() + true.sum())


@pytest.mark.parametrize("soft", [False, True])
def test_it_is_the_dice_of_each_mini_batchs_scans(soft: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 5, 6, 7, generator=generator)
    true = torch.rand(3, 1, 5, 6, 7, generator=generator) > 0.7
    labels = torch.cat([0.6 - 0.2 * true, 0.4 + 0.2 * true], dim=1) if soft else true.float()
    trainer = Engine(lambda *_: None)
    trainer.state.terms = {}
    trainer.state.output = [{"pred": pred, "label": label} for pred, label in zip(logits, labels, strict=True)]
    TrainingMetric("train_mean_dice", DICE)(trainer)
    expected = [dice_of(p[1] > p[0], t[0]) for p, t in zip(logits, true, strict=True)]
    assert trainer.state.terms["train_mean_dice"] == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_nothing_drawn_where_nothing_is_is_right() -> None:
    trainer = Engine(lambda *_: None)
    trainer.state.terms = {}
    trainer.state.output = [{"pred": torch.tensor([1.0, 0.0]).reshape(2, 1, 1, 1), "label": torch.zeros(1, 1, 1, 1)}]
    TrainingMetric("train_mean_dice", DICE)(trainer)
    assert trainer.state.terms["train_mean_dice"] == 1.0
