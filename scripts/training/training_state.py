"""MONAI's checkpoints forget random states, best metric and history: this is all of a run, to continue it exactly."""

import json
import logging
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.seeded_order import SeededSampler
from scripts.training.run_folder import FORMAT, RunFolder
from scripts.weights.checkpoint import refuse_other_weights

logger = logging.getLogger("meshnet")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def when_restored(trainer: Engine, function: Callable[..., None]) -> None:
    """Call ``function`` as the trainer starts, behind a restored state, and behind log and state, which hook in then.

    Attach it after them, as an overlay's handlers are; handlers that ``function`` adds come behind theirs.
    """
    trainer.add_event_handler(Events.STARTED, lambda: trainer.add_event_handler(Events.STARTED, function))


class TrainingState:
    """Keeps ``checkpoint_last.pt``: saved after an epoch and when the run is told to stop, loaded when it is resumed.

    On SIGTERM or SIGINT the state is saved after the optimizer step (or the validation scan) that is under way, and the
    process exits with 128 plus the signal's number. A loss that is not finite is saved as ``checkpoint_failed.pt``.
    It hooks itself in when the trainer starts, so behind whatever else is attached, an overlay's handlers included.

    Args:
        save_dict: what has a ``state_dict``: network, optimizer, schedule, an EMA if there is one.
        run_folder: where the state is, and the state to continue from.
        evaluator: the validation engine, whose best metric belongs to the state.
        save_interval: epochs between states.
        card: of the network, so that an evaluation can take it from the state; see ``scripts.weights.card.CARD``.

    Raises:
        InputError: ``save_interval`` is below 1.
    """

    def __init__(
        self,
        save_dict: dict[str, Any],
        run_folder: RunFolder,
        evaluator: Engine,
        save_interval: int = 1,
        card: dict | None = None,
    ) -> None:
        if save_interval < 1:
            raise InputError(f"save_interval {save_interval}: expected at least 1 epoch")
        self.save_dict, self.run_folder, self.evaluator = save_dict, run_folder, evaluator
        self.save_interval, self.card = save_interval, card
        self._signal: int | None = None
        self._begun = False
        self._restore: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        self.trainer = engine
        engine.add_event_handler(Events.STARTED, self._started)

    def _started(self, trainer: Engine) -> None:
        if trainer.state.max_epochs < 1:
            raise InputError(f"epochs {trainer.state.max_epochs}: expected at least 1")
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self._refuse_infinite_loss)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_validation_if_told)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.TERMINATE, lambda: self._save(self.run_folder.path))  # stopped early
        trainer.add_event_handler(Events.COMPLETED, self._restore_signals)
        trainer.add_event_handler(Events.EXCEPTION_RAISED, self._exception_raised)
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # a program that has its own handlers keeps them
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._restore[number] = signal.signal(number, self._on_signal)
        self.run_folder.claim()
        trainer.add_event_handler(Events.STARTED, self._continue)  # Ignite calls it in this very round, as the last

    def _continue(self) -> None:
        if self.run_folder.state is not None:
            self._load(self.run_folder.state)
            self.run_folder.state = None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, self._restore[number])  # a second one stops at once
        logger.warning(f"{signal.Signals(number).name}: saving the state after this step")

    def _load(self, state: dict) -> None:
        refuse_other_weights(str(self.run_folder.path), self.save_dict["network"].state_dict(), state["network"])
        for name, part in self.save_dict.items():
            if name not in state:
                raise InputError(f"{self.run_folder.path}: has no {name}, which this run saves; it cannot be resumed")
            part.load_state_dict(state[name])
        trainer, best = self.trainer, state["best"]
        if best["best_metric_epoch"] > 0 and not self.run_folder.model_path.is_file():
            raise InputError(
                f"{self.run_folder.model_path}: the best weights so far, of epoch "
                f"{best['best_metric_epoch']}, are missing; put them back, or start again with --overwrite true"
            )
        trainer.load_state_dict(state["trainer"])
        for name, value in best.items():
            setattr(self.evaluator.state, name, value)
        if trainer.scaler is not None and state["scaler"]:
            trainer.scaler.load_state_dict(state["scaler"])
        done = trainer.state.iteration % trainer.state.epoch_length
        if done and not isinstance(trainer.data_loader.sampler, SeededSampler):
            raise InputError(
                f"{self.run_folder.path}: stopped within an epoch, whose order only a SeededSampler repeats"
            )
        trainer.data_loader.sampler.skip = done * trainer.data_loader.batch_size
        set_random_states(state["random"])
        logger.info(f"Continuing after epoch {trainer.state.epoch} and {done} iterations of the next")
        if state["epoch_pending"]:  # all its training steps are in the state, its validation is not
            if isinstance(trainer.data_loader.sampler, SeededSampler):
                trainer.data_loader.sampler.set_epoch(trainer.state.epoch)
            trainer.fire_event(Events.EPOCH_COMPLETED)

    def _save(self, path: Path, epoch_pending: bool = False) -> None:
        trainer = self.trainer
        epochs = trainer.state.iteration // (trainer.state.epoch_length or 1)  # those that have ended
        state = {
            "format": FORMAT,
            "facts": self.run_folder.facts,
            "trainer": dict(trainer.state_dict()),
            "epoch_pending": epoch_pending,
            "card": json.loads(json.dumps({**(self.card or {}), "epoch": epochs})),
            "best": {
                "best_metric": float(self.evaluator.state.best_metric),
                "best_metric_epoch": int(self.evaluator.state.best_metric_epoch),
            },
            "scaler": {} if trainer.scaler is None else trainer.scaler.state_dict(),
            "random": random_states(),
            **{name: part.state_dict() for name, part in self.save_dict.items()},
        }
        with replace_file(path, "wb") as file:
            torch.save(state, file)

    def _epoch_completed(self, trainer: Engine) -> None:
        if trainer.state.epoch % self.save_interval == 0 or trainer.state.epoch == trainer.state.max_epochs:
            self._save(self.run_folder.path)
        if self._signal is not None:
            self._stop(epoch_pending=False)

    def _iteration_completed(self, trainer: Engine) -> None:
        if not self._begun:
            self.run_folder.begin()
            self._begun = True
        done = trainer.state.iteration % trainer.state.epoch_length
        if self._signal is not None and done % trainer.accumulation_steps == 0:
            self._stop(epoch_pending=done == 0)

    def _stop_validation_if_told(self, evaluator: Engine) -> None:
        if self._signal is not None:
            self._stop(epoch_pending=True)

    def _stop(self, epoch_pending: bool) -> None:
        self._save(self.run_folder.path, epoch_pending)
        logger.warning(f"Stopped; {self.run_folder.path} is saved, the same command with --resume true continues")
        raise SystemExit(128 + self._signal)

    def _refuse_infinite_loss(self, trainer: Engine) -> None:
        loss = trainer.state.output["loss"]
        if torch.isfinite(loss).all():
            return
        path = self.run_folder.path.with_name("checkpoint_failed.pt")
        self._save(path)
        files = trainer.state.batch["image"].meta["filename_or_obj"]
        raise InputError(
            f"epoch {trainer.state.epoch}, learning rate {trainer.optimizer.param_groups[0]['lr']:.3g}: the loss is "
            f"{loss.item()} for {', '.join(files)}; the state is in {path}"
        )

    def _exception_raised(self, trainer: Engine, error: BaseException) -> None:
        self._restore_signals()
        print(file=sys.stderr)  # the message does not belong behind the progress bar
        raise error

    def _restore_signals(self) -> None:
        for number, handler in self._restore.items():
            signal.signal(number, handler)


def random_states() -> dict:
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, keys.tolist(), *rest],  # arrays do not load with weights_only
        "python": random.getstate(),
    }


def set_random_states(states: dict) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    np.random.set_state(tuple(states["numpy"]))
    random.setstate(tuple(tuple(part) if isinstance(part, list) else part for part in states["python"]))
