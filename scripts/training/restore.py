"""Restore a run from its saved state, so that it continues as if it had not been interrupted."""

import logging
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededSampler
from scripts.training.random_states import set_random_states
from scripts.training.run_folder import RunFolder
from scripts.weights.checkpoint import refuse_other_weights

logger = logging.getLogger("meshnet")


@dataclass(eq=False)
class RestoreState:
    """Loads the state in ``run_folder``, if there is one, as the trainer starts.

    It is the first of the trainer's handlers, so the others start with what is restored.
    """

    save_dict: dict[str, Any]  # what has a ``state_dict``, as in ``TrainingState``
    run_folder: RunFolder  # where the state is
    evaluator: Engine  # of the validation, whose best metric belongs to the state

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, trainer: Engine) -> None:
        """Restore; called when the trainer starts."""
        self.run_folder.claim()
        state = self.run_folder.state
        if state is None:
            return
        self._load_parts(state)
        self._load_best(state["best"])
        trainer.load_state_dict(state["trainer"])
        if trainer.scaler is not None and state["scaler"]:
            trainer.scaler.load_state_dict(state["scaler"])
        self._skip_done(trainer)
        set_random_states(state["random"][idist.get_rank()])

    def _load_parts(self, state: dict) -> None:
        refuse_other_weights(str(self.run_folder.path), self.save_dict["network"].state_dict(), state["network"])
        for name, part in self.save_dict.items():
            if name not in state:
                raise InputError(f"{self.run_folder.path}: has no {name}, which this run saves; it cannot be resumed")
            part.load_state_dict(state[name])

    def _load_best(self, best: dict) -> None:
        if best["best_metric_epoch"] > 0 and not self.run_folder.model_path.is_file():
            raise InputError(
                f"{self.run_folder.model_path}: the best weights so far, of epoch "
                f"{best['best_metric_epoch']}, are missing; put them back, or start again with --overwrite true"
            )
        for name, value in best.items():
            setattr(self.evaluator.state, name, value)

    def _skip_done(self, trainer: Engine) -> None:
        """Let the sampler leave out what this epoch was trained on."""
        done = trainer.state.iteration % trainer.state.epoch_length
        sampler = trainer.data_loader.sampler
        if done and not isinstance(sampler, SeededSampler):
            raise InputError(
                f"{self.run_folder.path}: stopped within an epoch, whose order only a SeededSampler repeats"
            )
        sampler.skip = done * trainer.data_loader.batch_size
        logger.info(f"Continuing after epoch {trainer.state.epoch} and {done} iterations of the next")
