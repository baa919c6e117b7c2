"""Keep the weights of the best and of every n-th epoch; which ones follows from the history, also after a resume."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from scripts.training.checkpoint import dated
from scripts.weights.checkpoint import write_weights


@dataclass(eq=False)
class KeepCheckpoints:
    """Keeps the weights of the best and of every n-th epoch, ``epochs/epoch-0012.pt`` and its card, and no others'.

    ``model_last.pt`` beside that folder has those of the last epoch so far. Cards have epoch, metrics and date.

    It has no state: what is wanted follows from the rows of the log, also after a resume.
    """

    network: torch.nn.Module  # whose weights; what is validated
    folder: str  # of ``epochs/``; files there of epochs that are not wanted are removed, an earlier run's as well
    card: dict  # see ``scripts.weights.card.CARD``
    evaluator: Engine  # of the validation, whose key metric says what is best
    keep_best: int = 3  # epochs, the earlier of equals; epochs without validation do not count
    keep_every: int = 10  # epochs from one that is kept to the next, 0 for none

    @idist.one_rank_only()
    def attach(self, engine: Engine) -> None:
        """Register with the trainer, between the log and the state."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save_and_remove)

    def _save_and_remove(self, trainer: Engine) -> None:
        epoch = trainer.state.epoch
        rows = trainer.state.run_log["rows"]
        wanted = self._wanted(rows)
        folder = Path(self.folder) / "epochs"
        last = folder.with_name("model_last.pt")
        for path in [last, *[folder / f"epoch-{epoch:04d}.pt"] * (epoch in wanted)]:
            write_weights(path, self.network, dated(self.card, epoch, rows[-1]))
        for path in folder.glob("epoch-*"):
            found = re.fullmatch(r"epoch-(\d{4,})\.(pt|json)", path.name)
            if found and int(found[1]) not in wanted:
                path.unlink()

    def _wanted(self, rows: list[dict]) -> set[int]:
        key = self.evaluator.state.key_metric_name
        validated = [row for row in rows if not math.isnan(row.get(key, math.nan))]
        best = []
        is_gain = self.evaluator.metric_cmp_fn
        sign = 1 if is_gain(math.inf, 0.0) else -1  # of more
        for row in validated:
            best.append(row)
            if len(best) > self.keep_best:  # a new one has to be a gain over the worst, the later of equals
                worst = min(best[-2::-1], key=lambda row: sign * row[key], default=row)
                best.remove(worst if is_gain(row[key], worst[key]) else row)
        every = [row for row in rows if self.keep_every and row["epoch"] % self.keep_every == 0]
        return {row["epoch"] for row in (*best, *every)}
