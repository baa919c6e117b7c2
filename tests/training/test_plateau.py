"""The rate falls when the validation metric does not rise, whatever its interval, and not without validation."""

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.training.plateau import PlateauSchedule


def test_the_rate_falls_after_patience_and_validation_does_not_need_to_be_in_every_epoch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1)
    evaluator, trainer, rates = Engine(lambda *_: None), Engine(lambda *_: None), []
    evaluator.data_loader, evaluator.state.key_metric_name = [0], "score"
    scores = {2: 0.3, 4: 0.2, 6: 0.1, 8: 0.4, 10: 0.4, 12: 0.4}

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        if (epoch := trainer.state.epoch) in scores:
            evaluator.state.epoch, evaluator.state.metrics = epoch, {"score": scores[epoch]}

    PlateauSchedule(scheduler, evaluator).attach(trainer)  # behind the validation, as in train.json
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run([0], max_epochs=12)
    assert rates == [1.0] * 5 + [0.5] * 6 + [0.25]


def test_without_validation_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"^schedule_name plateau: there is no validation to step by; give --inner"):
        PlateauSchedule(None, SimpleNamespace(data_loader=[]))


@pytest.mark.parametrize("restored", [0, 2, 5])
def test_a_warm_up_comes_before_it_resumed_or_not(restored: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, total_iters=4)
    evaluator, trainer, rates = Engine(lambda *_: None), Engine(lambda *_: optimizer.step()), []
    evaluator.data_loader, evaluator.state.key_metric_name = [0], "score"

    @trainer.on(Events.STARTED)
    def restore() -> None:
        trainer.state.epoch = trainer.state.iteration = restored
        optimizer.param_groups[0]["lr"] = 0.5 * min(1, (restored + 1) / 5)  # as the optimizer's state has it

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:  # no gain from epoch 7 on
        evaluator.state.epoch, evaluator.state.metrics = trainer.state.epoch, {"score": min(trainer.state.epoch, 6)}

    PlateauSchedule(scheduler, evaluator, warmup).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run([0], max_epochs=8)
    expected = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.25]
    assert rates == pytest.approx(expected[restored:])
