"""MONAI's LrScheduleHandler steps per mini-batch even where the optimizer steps once in several."""

import monai
from ignite.engine import Engine, Events


class LrScheduleHandler(monai.handlers.LrScheduleHandler):
    """Steps the schedule whenever ``SupervisedTrainer`` steps its optimizer, ``accumulation_steps`` counted."""

    def attach(self, engine: Engine) -> None:
        """Register with a ``SupervisedTrainer``."""

        def optimizer_steps(engine: Engine, iteration: int) -> bool:
            done = (iteration - 1) % engine.state.epoch_length + 1
            return done % engine.accumulation_steps == 0 or done == engine.state.epoch_length

        engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=optimizer_steps), self)
