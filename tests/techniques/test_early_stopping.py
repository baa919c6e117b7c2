"""A training ends after so many validations without a gain, resumed or not, and is finished then."""

from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.techniques.early_stopping import EarlyStopping


def epochs_of(scores: list[float], patience: int, interval: int = 1, from_epoch: int = 0) -> int:
    """At which epoch a run with these validation scores ends, continued after ``from_epoch``."""
    evaluator, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.data_loader, evaluator.state.key_metric_name = [0], "score"
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1.0, -1

    def validate(epoch: int) -> None:
        if epoch % interval == 0 and (score := scores[epoch - 1]) > evaluator.state.best_metric:
            evaluator.state.best_metric, evaluator.state.best_metric_epoch = score, epoch

    @trainer.on(Events.STARTED)
    def restore() -> None:
        trainer.state.epoch, trainer.state.iteration = from_epoch, from_epoch
        for epoch in range(1, from_epoch + 1):
            validate(epoch)

    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validate(trainer.state.epoch))
    EarlyStopping(evaluator, patience, interval).attach(trainer)
    trainer.run([0], max_epochs=len(scores))
    return trainer.state.epoch


SCORES = [0.1, 0.4, 0.3, 0.4, 0.2, 0.5, 0.1, 0.1, 0.1, 0.1]


@pytest.mark.parametrize(("patience", "interval", "last"), [(1, 1, 3), (3, 1, 5), (4, 1, 10), (5, 1, 10), (1, 2, 4)])
@pytest.mark.parametrize("resumed", [0, 2])
def test_it_ends_when_patience_does(patience: int, interval: int, last: int, resumed: int) -> None:
    assert epochs_of(SCORES, patience, interval, resumed) == last


def test_a_run_that_has_stopped_is_finished() -> None:
    assert epochs_of(SCORES, patience=3, from_epoch=5) == 5


def test_it_needs_validation() -> None:
    with pytest.raises(InputError, match=r"there is no validation to stop by; give --inner_fold 0"):
        EarlyStopping(SimpleNamespace(data_loader=[]), 3)


def test_it_tells_the_reason() -> None:
    evaluator, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.data_loader, evaluator.state.best_metric_epoch = [0], 1
    EarlyStopping(evaluator, 3).attach(trainer)
    trainer.run([0], max_epochs=9)
    assert trainer.state.stopped_early == "no gain in 3 validations since epoch 1"
