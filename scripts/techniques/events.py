"""Append a line of JSON for every epoch and every other event of a run, for a dashboard to follow."""

import datetime
import json
import math
import time
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events

from scripts.common.errors import InputError, describe
from scripts.common.files import replace_file


class EventLog:
    """Appends to ``events.jsonl`` what happens: "started", "epoch", "completed", "stopped" (by a signal) or "failed".

    "stopped_early" says why a run has fewer epochs than planned (``reason``); "completed" follows it.

    Every line has ``event``, ``time`` (ISO 8601), ``epoch`` (how many are done) and ``epochs`` (of how many). "epoch"
    has its row of ``history.csv`` too, its ``seconds``, and those ``remaining`` by the mean epoch of this process; both
    are null of epochs before this overlay was added to a run. "started" says whether the run is
    ``continued``, "failed" has the ``error``. What is undefined is null.

    A continued run appends, after lines about epochs later than its state are taken out: no epoch is there twice. A
    process that is killed leaves no line about that.

    Args:
        output_dir: folder of the file.

    Raises:
        InputError: the file cannot be written, or is not what this has written.
    """

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "events.jsonl"
        self._open = False
        self._seconds = []

    @idist.one_rank_only()
    def attach(self, engine: Engine) -> None:
        """Register with the trainer, between the log and the state, which raises an exception again."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._ended)

    def _started(self, trainer: Engine) -> None:
        rows = trainer.state.run_log["rows"]
        continued = trainer.state.iteration > 0
        kept = []
        if continued and self.path.is_file():
            kept = [line for line in self._lines() if line["epoch"] <= len(rows)]
        with replace_file(self.path) as file:
            file.writelines(f"{json.dumps(line)}\n" for line in kept)
        written = max((line["epoch"] for line in kept if line["event"] == "epoch"), default=0)
        for row in rows[written:]:
            self._write(trainer, "epoch", {"seconds": None, "remaining": None, **row})
        self._write(trainer, "started", {"epoch": len(rows), "continued": continued})
        self._written = len(rows)
        self._open = True
        self._clock = time.perf_counter()

    def _epoch_completed(self, trainer: Engine) -> None:
        now = time.perf_counter()
        row = trainer.state.run_log["rows"][-1]
        self._seconds.append(now - self._clock)
        mean = sum(self._seconds) / len(self._seconds)
        self._clock = now
        self._written = row["epoch"]
        remaining = mean * (trainer.state.max_epochs - row["epoch"])
        times = {"seconds": round(self._seconds[-1], 3), "remaining": round(remaining, 1)}
        self._write(trainer, "epoch", {**row, **times})

    def _completed(self, trainer: Engine) -> None:
        if reason := getattr(trainer.state, "stopped_early", None):
            self._write(trainer, "stopped_early", {"epoch": self._written, "reason": reason})
        self._write(trainer, "completed", {"epoch": self._written})

    def _ended(self, trainer: Engine, error: BaseException) -> None:
        if not self._open:  # Ignite tells of an error again if a handler raises it, as the state's does
            return
        self._open = False
        if isinstance(error, Exception):
            self._write(trainer, "failed", {"epoch": self._written, "error": describe(error)})
        else:
            self._write(trainer, "stopped", {"epoch": self._written})

    def _lines(self) -> list[dict]:
        whole = self.path.read_text().split("\n")[:-1]  # a kill may have cut the last line short
        try:
            return [json.loads(line) for line in whole]
        except json.JSONDecodeError as error:
            raise InputError(f"{self.path}: not lines of JSON ({error}); put it back, or delete it") from error

    def _write(self, trainer: Engine, event: str, values: dict) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        line = {"event": event, "time": now, "epoch": None, "epochs": trainer.state.max_epochs, **finite}
        try:
            with self.path.open("a") as file:
                file.write(f"{json.dumps(line)}\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error
