"""The folders of one run: claimed while it lives, never an earlier run's unless asked for, and recorded."""

import datetime
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import torch
from filelock import FileLock, Timeout

from scripts.common.errors import InputError, one_line
from scripts.common.json_file import read_json, write_json
from scripts.training.run_record import command, differences, facts_of, recipe
from scripts.weights.checkpoint import read_checkpoint

logger = logging.getLogger("meshnet")
FORMAT = 5  # of the training state; counted up when its content changes
RESULTS = ("checkpoint_last.pt", "checkpoint_failed.pt", "history.csv", "report.html")


@dataclass(eq=False)
class RunFolder:
    """The folders of one training run: nobody else's while it lives, and never an earlier run's unless asked for.

    ``facts`` is what is kept of the run, in the training state and in ``run.json``; ``differences`` is what differs
    from the shipped recipe.

    Raises:
        InputError: a folder is named by an empty text, or ``model_path`` does not end with .pt.
    """

    output_dir: str  # of the history and ``run.json``
    ckpt_dir: str  # of the weights and ``checkpoint_last.pt``
    config: dict  # overrides included, macros resolved
    cohort: str  # fingerprint of what is trained on
    resume: bool = False  # continue the run in ``ckpt_dir``, if there is one
    overwrite: bool = False  # replace the runs in both folders, once this one has made its first step
    model_path: str | Path | None = None  # of the weights for use, by default ``ckpt_dir/model.pt``; nobody else's, too

    def __post_init__(self) -> None:
        self.model_path = Path(self.ckpt_dir, "model.pt") if self.model_path is None else Path(self.model_path)
        if self.model_path.suffix != ".pt":
            raise InputError(f"model_path {self.model_path}: expected a name that ends with .pt")
        for key in ("output_dir", "ckpt_dir"):
            if not str(getattr(self, key)).strip():
                raise InputError(f"{key}: is empty; give a folder")
        self.path = Path(self.ckpt_dir) / "checkpoint_last.pt"
        self.record = Path(self.output_dir) / "run.json"
        known = facts_of(self.config, self.cohort)
        self.facts = {"run_id": uuid.uuid4().hex[:8], **known}  # no random number of the training's
        self.differences = {name: ours for name, _, ours in differences(recipe(), self.facts["config"])}
        self.locks: list[FileLock] = []
        self._claimed = False
        self.state: dict | None = None  # what an earlier run has left to continue from
        self._continued_from: int | None = None
        self._epochs_logged = 0

    @property
    def run_id(self) -> str:
        """Eight hexadecimal digits that a run keeps when it is continued; takes the folders first."""
        self.claim()
        return self.facts["run_id"]

    @property
    def epochs_logged(self) -> int:
        """The epochs in the history of the run that is continued, or 0; takes the folders first."""
        self.claim()
        return self._epochs_logged

    def claim(self) -> None:
        """Take the folders for this run and find the state to continue from; nothing is written or removed yet.

        Of processes that train together rank 0 takes the folders, and gives its state to the others.

        Raises:
            InputError: a folder holds a run, is in use, or holds a state that this config cannot continue.
        """
        if self._claimed:
            return
        if idist.get_rank() == 0:
            self._claim()
        if idist.get_world_size() > 1:
            found = [self.state]
            torch.distributed.broadcast_object_list(found)
            self.state = found[0]
        self._claimed = True

    def _claim(self) -> None:
        folders = (self.path.parent, self.record.parent, self.model_path.parent)
        self.locks = [_lock(folder) for folder in dict.fromkeys(folders)]
        earlier = self._earlier("checkpoint_last.pt", "history.csv") + [self.model_path] * self.model_path.exists()
        if self.resume and self.path.exists():
            self.state = read_checkpoint(self.path)
            self._refuse_other_run(self.state)
            self.facts["run_id"] = self.state["facts"]["run_id"]
            self._continued_from = self.state["trainer"]["iteration"]
            self._epochs_logged = len(self.state["trainer"].get("run_log", {"rows": []})["rows"])
        elif earlier and not self.overwrite and not (self.resume and self._began_here()):
            raise InputError(
                f"{earlier[0]}: {_describe(self.path)}; --resume true continues it, --overwrite true replaces it, "
                "--output_dir and --ckpt_dir put this run elsewhere"
            )

    @idist.one_rank_only()
    def begin(self) -> None:
        """Remove what an earlier run has left, unless this one continues it, and record this one.

        Called when a first step has succeeded, so that a run that cannot even start costs nobody's results.
        """
        now = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "command": command()}
        record = {**now, **self.facts, "continued": []}
        if self._continued_from is None:
            for path in (*self._earlier(*RESULTS), self.model_path, self.model_path.with_suffix(".json")):
                path.unlink(missing_ok=True)
        elif self.record.is_file():
            record = read_json(self.record, "put the run's own record back, or delete it")
            record["continued"].append({**now, "from_iteration": self._continued_from})
        write_json(self.record, record)

    def release(self) -> None:
        """Give the folders back, in a process that goes on after the run."""
        for lock in self.locks:
            lock.release()
        self.locks = []
        self._claimed = False

    def _earlier(self, *names: str) -> list[Path]:
        folders = dict.fromkeys((self.path.parent, self.record.parent))
        return [folder / name for folder in folders for name in names if (folder / name).exists()]

    def _began_here(self) -> bool:
        """Whether this very run was here, and was killed before it had saved its first state."""
        if not self.record.is_file():
            return False
        record = read_json(self.record, "put the run's own record back, or delete it")
        return record["cohort"] == self.facts["cohort"] and not self._different(record["config"])

    def _different(self, config: dict) -> list[str]:
        found = differences(config, self.facts["config"])
        return [f"{name} is {one_line(str(a), 200)} there and {one_line(str(b), 200)} here" for name, a, b in found]

    def _refuse_other_run(self, state: dict) -> None:
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise InputError(
                f"{self.path}: not a training state of this version (format {FORMAT}); resume it with the version of "
                "the bundle that began it, or begin anew with --overwrite true"
            )
        theirs = state["facts"]
        different = self._different(theirs["config"])
        if theirs["cohort"] != self.facts["cohort"]:
            different.append(
                f"the scans, their split, the grid or the weights to start from differ (fingerprint {theirs['cohort']})"
            )
        if different:
            raise InputError(
                f"{self.path}: a state of another run ({'; '.join(different)}); use the same values, or another "
                "--ckpt_dir"
            )
        for what in ("versions", "hardware"):
            for key, now in self.facts[what].items():
                if theirs[what].get(key) != now:
                    logger.warning(f"{key} was {theirs[what].get(key)} when the state was saved and is {now} now")


def _lock(folder: Path) -> FileLock:
    """The operating system releases it when the process ends, however it ends."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return lock.acquire(timeout=0).lock
    except Timeout as error:
        raise InputError(f"{folder}: another run is writing there; give this one its own folder") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another folder") from error


def _describe(path: Path) -> str:
    if not path.exists():
        return "results of an earlier run are there"
    trainer = read_checkpoint(path)["trainer"]
    epoch = trainer["iteration"] / trainer["epoch_length"]
    last = trainer["max_epochs"]
    return (
        "a finished run is there" if epoch >= last else f"a run is there that stopped after epoch {epoch:.4g} of {last}"
    )
