"""MONAI runs a training to its end: here one by train.json halts after each epoch, and others run."""

import csv
from functools import partial
from pathlib import Path

import monai
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.search.space import TRAIN
from scripts.training.training_state import random_states, set_random_states


class InnerFold:
    """The training of one inner fold of a trial, with random states of its own although it shares the process.

    Args:
        folder: the trial's, with its ``overrides.json``; a state that is there is continued.
        inner_fold: which one validates.
        metric: name of a validation metric.
    """

    def __init__(self, folder: Path, inner_fold: int, metric: str) -> None:
        own, self.metric = folder / f"inner_fold-{inner_fold}", metric
        self.history, self.halted = own / "history.csv", False
        workflow = monai.bundle.ConfigWorkflow(
            [str(TRAIN), str(folder / "overrides.json")],
            meta_file=str(TRAIN.with_name("metadata.json")),
            logging_file=False,
            **{"inner_fold": inner_fold, "output_dir": str(own), "ckpt_dir": str(own), "resume": True, "report": False},
        )
        workflow.initialize()
        self.run, parsed = workflow.run, workflow.parser.get_parsed_content
        monai.utils.set_determinism(parsed("seed"))  # as train.json does before it builds the network
        self.trainer, self.evaluator, self.run_folder = map(
            parsed, ("train#trainer", "validate#evaluator", "run_folder")
        )
        self.random = random_states()
        self.trainer.add_event_handler(Events.STARTED, self._start)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._halt)

    def advance(self, epoch: int) -> float:
        """Train up to ``epoch``, unless a state beyond it was continued; return the metric at that epoch.

        Raises:
            InputError: the training does not measure the metric.
        """
        while self.trainer.state.epoch < epoch:
            set_random_states(self.random)
            self.run()
            self.run = partial(monai.engines.Workflow.run, self.trainer)  # Trainer.run would make a new gradient scaler
            self.random = random_states()
        measured = self.evaluator.state.metrics
        if measured and self.metric not in measured:
            raise InputError(f"metric {self.metric!r}: not one of {', '.join(measured)}")
        with self.history.open(newline="") as file:
            return float(list(csv.DictReader(file))[epoch - 1][self.metric])

    def _start(self, trainer: Engine) -> None:
        if trainer.state.iteration == 0:  # else the state that is continued has brought its own
            set_random_states(self.random)  # as the network's initialisation left them, like in a run of its own

    def _halt(self, trainer: Engine) -> None:
        self.halted = trainer.state.epoch < trainer.state.max_epochs
        if self.halted:
            trainer.interrupt()

    def close(self) -> None:
        """End a training that is halted; give its folder back."""
        if self.halted:
            self.trainer.terminate(skip_completed=True)
            self.run()
        self.run_folder.release()
