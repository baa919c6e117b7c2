"""Lower the learning rate when the validation metric stops rising."""

from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import LinearLR, ReduceLROnPlateau

from scripts.common.errors import InputError


class PlateauSchedule(LrScheduleHandler):
    """Steps the schedule by the evaluator's key metric after each epoch that was validated.

    Args:
        lr_scheduler: of the key metric's mode.
        evaluator: the validation engine.
        warmup: steps with each mini-batch before that, until its ``total_iters``; SequentialLR takes no plateau.

    Raises:
        InputError: nothing is validated.
    """

    def __init__(self, lr_scheduler: ReduceLROnPlateau, evaluator: Engine, warmup: LinearLR | None = None) -> None:
        if not len(evaluator.data_loader):
            raise InputError("schedule_name plateau: there is no validation to step by; give --inner_fold 0")
        state = evaluator.state
        super().__init__(lr_scheduler, print_lr=False, step_transform=lambda _: state.metrics[state.key_metric_name])
        self.evaluator, self.warmup = evaluator, warmup

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, behind the validation."""
        validated = Events.EPOCH_COMPLETED(event_filter=lambda _, epoch: epoch == self.evaluator.state.epoch)
        engine.add_event_handler(validated, self)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._warm_up)

    def _warm_up(self, trainer: Engine) -> None:
        if self.warmup and trainer.state.iteration <= self.warmup.total_iters:
            self.warmup.last_epoch = trainer.state.iteration - 1  # also where a state was restored
            self.warmup.step()
