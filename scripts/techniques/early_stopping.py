"""Stop a training that no longer gains, by the epoch of the best weights, which a resumed run knows too."""

import logging
from dataclasses import dataclass

from ignite.engine import Engine, Events

from scripts.common.errors import InputError

logger = logging.getLogger("meshnet")


@dataclass(eq=False)
class EarlyStopping:
    """Ends the training when ``patience`` validations in a row have not improved the key metric by its least gain.

    What counts is the epoch of the best weights, which the training state restores, so a resumed run stops where it
    would have stopped, and a run that has stopped is finished: resumed, it stops at once. The weights for use are the
    best ones, as ever.

    Raises:
        InputError: nothing is validated.
    """

    evaluator: Engine  # of the validation
    patience: int  # validations without a gain
    interval: int = 1  # epochs from one validation to the next

    def __post_init__(self) -> None:
        if not len(self.evaluator.data_loader):
            raise InputError("early_stopping.json: there is no validation to stop by; give --inner_fold 0")

    def attach(self, engine: Engine) -> None:
        """Register with the trainer, behind what restores a state and behind the validation."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        """Stop if it is time; called after each epoch and when a state was restored."""
        best = self.evaluator.state.best_metric_epoch
        since = trainer.state.epoch // self.interval - best // self.interval
        if best > 0 and since >= self.patience and trainer.state.epoch < trainer.state.max_epochs:
            trainer.state.stopped_early = f"no gain in {since} validations since epoch {best}"
            logger.info(f"Stopped early: {trainer.state.stopped_early}")
            trainer.terminate()
