"""ReduceLROnPlateau steps by a validation metric, which MONAI's LrScheduleHandler, attached first, has not yet seen."""

from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from scripts.common.errors import InputError


class PlateauSchedule(LrScheduleHandler):
    """Steps the schedule by the evaluator's key metric after each epoch that was validated.

    Args:
        lr_scheduler: of the key metric's mode.
        evaluator: the validation engine.

    Raises:
        InputError: nothing is validated.
    """

    def __init__(self, lr_scheduler: ReduceLROnPlateau, evaluator: Engine) -> None:
        if not len(evaluator.data_loader):
            raise InputError("schedule_name plateau: there is no validation to step by; give --inner_fold 0")
        state = evaluator.state
        super().__init__(lr_scheduler, print_lr=False, step_transform=lambda _: state.metrics[state.key_metric_name])
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, behind the validation."""
        validated = Events.EPOCH_COMPLETED(event_filter=lambda _, epoch: epoch == self.evaluator.state.epoch)
        engine.add_event_handler(Events.STARTED, lambda: engine.add_event_handler(validated, self))
