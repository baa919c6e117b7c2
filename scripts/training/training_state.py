"""Save all of a run, so that it can be continued exactly: after epochs, and when the run is told to stop."""

import json
import logging
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.seeded_order import SeededSampler
from scripts.training.random_states import random_states
from scripts.training.run_folder import FORMAT, RunFolder

logger = logging.getLogger("meshnet")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(eq=False)
class TrainingState:
    """Saves ``checkpoint_last.pt`` after an epoch and when the run is told to stop; ``RestoreState`` loads it.

    On SIGTERM or SIGINT the state is saved after the optimizer step (or the validation scan) that is under way, and the
    process exits with 128 plus the signal's number. A loss that is not finite is saved as ``checkpoint_failed.pt``.
    Of processes that train together all stop after the same step, when one was told to, and rank 0 saves. They take no
    notice of a second signal, since torchrun repeats a terminal's.
    It is the last of the trainer's handlers, so it saves what all others leave.
    """

    save_dict: dict[str, Any]  # what has a ``state_dict``: network, optimizer, schedule, an EMA if there is one
    run_folder: RunFolder  # where the state is
    evaluator: Engine  # of the validation, whose best metric belongs to the state
    save_interval: int = 1  # epochs between states
    card: dict | None = None  # so that an evaluation can take it from the state; see ``scripts.weights.card.CARD``
    _signal: int = field(default=0, init=False)  # that this process got
    _begun: bool = field(default=False, init=False)
    _restore: dict[int, Any] = field(default_factory=dict, init=False)

    def attach(self, engine: Engine) -> None:
        self.trainer = engine
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_validation_if_told)
        for event, handler in (
            (Events.STARTED, self._started),
            (IterationEvents.LOSS_COMPLETED, self._refuse_infinite_loss),
            (Events.ITERATION_COMPLETED, self._iteration_completed),
            (Events.EPOCH_COMPLETED, self._epoch_completed),
            (Events.TERMINATE, lambda: self._save()),  # stopped early
            (Events.COMPLETED, self._restore_signals),
            (Events.EXCEPTION_RAISED, self._exception_raised),
        ):
            engine.add_event_handler(event, handler)

    def _started(self, trainer: Engine) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # a program that has its own handlers keeps them
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._restore[number] = signal.signal(number, self._on_signal)
        restored, self.run_folder.state = self.run_folder.state, None
        if restored and restored["epoch_pending"]:  # all its training steps are in the state, its validation is not
            if isinstance(trainer.data_loader.sampler, SeededSampler):
                trainer.data_loader.sampler.set_epoch(trainer.state.epoch)
            trainer.fire_event(Events.EPOCH_COMPLETED)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if idist.get_world_size() == 1:
            signal.signal(number, self._restore[number])  # a second one stops at once
        logger.warning(f"{signal.Signals(number).name}: saving the state after this step")

    def _told_to_stop(self) -> int:
        """The signal that any of the processes got, or 0."""
        return int(idist.all_reduce(self._signal, "MAX"))

    def _save(self, epoch_pending: bool = False) -> None:
        random = idist.all_gather(random_states())
        if idist.get_rank() == 0:
            self._write(self.run_folder.path, random, epoch_pending)

    def _write(self, path: Path, random: list[dict], epoch_pending: bool = False) -> None:
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
            "random": random,  # of each process
            **{name: part.state_dict() for name, part in self.save_dict.items()},
        }
        with replace_file(path, "wb") as file:
            torch.save(state, file)

    def _epoch_completed(self, trainer: Engine) -> None:
        if trainer.state.epoch % self.save_interval == 0 or trainer.state.epoch == trainer.state.max_epochs:
            self._save()
        if told := self._told_to_stop():
            self._stop(told, epoch_pending=False)

    def _iteration_completed(self, trainer: Engine) -> None:
        if not self._begun:
            self.run_folder.begin()
            self._begun = True
        done = trainer.state.iteration % trainer.state.epoch_length
        if done % trainer.accumulation_steps == 0 and (told := self._told_to_stop()):
            self._stop(told, epoch_pending=done == 0)

    def _stop_validation_if_told(self, evaluator: Engine) -> None:
        if self._signal and idist.get_world_size() == 1:  # several have different numbers of scans
            self._stop(self._signal, epoch_pending=True)

    def _stop(self, told: int, epoch_pending: bool) -> None:
        self._save(epoch_pending)
        idist.barrier()  # torchrun ends all processes when the first one has ended
        logger.warning(f"Stopped; {self.run_folder.path} is saved, the same command with --resume true continues")
        raise SystemExit(128 + told)

    def _refuse_infinite_loss(self, trainer: Engine) -> None:
        loss = trainer.state.output["loss"]
        if torch.isfinite(loss).all():
            return
        path = self.run_folder.path.with_name("checkpoint_failed.pt")
        self._write(path, [random_states()])
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
