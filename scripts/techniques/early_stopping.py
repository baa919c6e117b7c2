"""Stop a training that no longer gains, by the epoch of the best weights, which a resumed run knows too."""

import logging

from ignite.engine import Engine, Events

from scripts.common.errors import InputError

logger = logging.getLogger("meshnet")


class EarlyStopping:
    """Ends the training when ``patience`` validations in a row have not improved the key metric by its least gain.

    What counts is the epoch of the best weights, which the training state restores, so a resumed run stops where it
    would have stopped, and a run that has stopped is finished: resumed, it stops at once. The weights for use are the
    best ones, as ever.

    Args:
        evaluator: the validation engine.
        patience: validations without a gain.
        interval: epochs from one validation to the next.

    Raises:
        InputError: nothing is validated.
    """

    def __init__(self, evaluator: Engine, patience: int, interval: int = 1) -> None:
        if not len(evaluator.data_loader):
            raise InputError("early_stopping.json: there is no validation to stop by; give --inner_fold 0")
        self.evaluator = evaluator
        self.patience = patience
        self.interval = interval

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
