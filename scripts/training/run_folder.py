"""MONAI writes over earlier results in silence and keeps no record of a run: this claims its folders and records it."""

import datetime
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import ignite
import monai
import numpy as np
import torch
from filelock import FileLock, Timeout

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.networks.weights import read_checkpoint

logger = logging.getLogger("meshnet")
FORMAT = 1  # of the training state; counted up when its content changes
RECIPE = Path(__file__).resolve().parents[2] / "configs" / "train.json"


class RunFolder:
    """The folders of one training run: nobody else's while it lives, and never an earlier run's unless asked for.

    ``facts`` is what is kept of the run, in the training state and in ``run.json``.

    Args:
        output_dir: folder for the history and ``run.json``.
        ckpt_dir: folder for weights and ``checkpoint_last.pt``.
        config: the config, overrides included.
        settings: what must not change between a run and its continuation.
        resume: continue the run in ``ckpt_dir``, if there is one.
        overwrite: replace the runs in ``output_dir`` and ``ckpt_dir``.
    """

    def __init__(
        self,
        output_dir: str,
        ckpt_dir: str,
        config: dict,
        settings: dict,
        resume: bool | str = False,
        overwrite: bool | str = False,
    ) -> None:
        self.path, self.record = Path(ckpt_dir) / "checkpoint_last.pt", Path(output_dir) / "run.json"
        self.facts = _facts(config, settings)
        self.resume, self.overwrite = (str(option).lower() == "true" for option in (resume, overwrite))
        self.locks: list[FileLock] = []
        self.state: dict | None = None  # what an earlier run has left to continue from

    def claim(self) -> None:
        """Take the folders for this process, find the state to continue from, and record the run; once.

        Raises:
            InputError: a folder holds a run, is in use, or holds a state that these settings cannot continue.
        """
        if self.locks:
            return
        self.locks = [_lock(folder) for folder in dict.fromkeys((self.path.parent, self.record.parent))]
        results = (self.path, self.path.with_name("model.pt"), self.record.with_name("history.csv"))
        earlier = [path for path in results if path.exists()]
        if self.resume and self.path.exists():
            self.state = read_checkpoint(self.path)
            self._refuse_other_run(self.state)
        elif self.overwrite or (self.resume and self._began_here()):
            for path in earlier:
                path.unlink()
        elif earlier:
            raise InputError(
                f"{earlier[0]}: {_describe(self.path)}; --resume true continues it, --overwrite true replaces it, "
                "--output_dir and --ckpt_dir put this run elsewhere"
            )
        self._write_record()

    def _began_here(self) -> bool:
        """Whether this very run was here, and was killed before it had saved its first state."""
        return self.record.is_file() and json.loads(self.record.read_text())["settings"] == self.facts["settings"]

    def _refuse_other_run(self, state: dict) -> None:
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise InputError(
                f"{self.path}: not a training state of this version (format {FORMAT}); it cannot be resumed"
            )
        ours, theirs = self.facts["settings"], state["facts"]["settings"]
        different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if different:
            what = "; ".join(f"{key} is {theirs.get(key)} there and {ours.get(key)} here" for key in different)
            raise InputError(
                f"{self.path}: a state of another run ({what}); use the same values, or another --ckpt_dir"
            )
        for what in ("config", "versions", "hardware"):
            ours, theirs = self.facts[what], state["facts"][what]
            for key in sorted({*ours, *theirs} - {"resume", "overwrite", "debug"}):
                if ours.get(key) != theirs.get(key):
                    logger.warning(f"{key} was {theirs.get(key)} when the state was saved and is {ours.get(key)} now")

    def _write_record(self) -> None:
        now = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "command": _command()}
        record = {**now, **self.facts, "continued": []}
        if self.state is not None and self.record.is_file():
            record = json.loads(self.record.read_text())
            record["continued"].append({**now, "from_iteration": self.state["trainer"]["iteration"]})
        with replace_file(self.record) as file:
            json.dump(record, file, indent=4, default=str)
            file.write("\n")


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
    epoch, last = trainer["iteration"] / trainer["epoch_length"], trainer["max_epochs"]
    return (
        "a finished run is there" if epoch >= last else f"a run is there that stopped after epoch {epoch:.4g} of {last}"
    )


def _facts(config: dict, settings: dict) -> dict:
    facts = {
        "settings": settings,
        "overrides": _differences(config),
        "config": {key: value for key, value in config.items() if key != "_meta_"},
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (monai, torch, ignite, np)},
        },
        "hardware": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "git_revision": _git_revision(),
    }
    return json.loads(json.dumps(facts, default=str))  # what a state may hold, whatever objects a program passed


def _differences(config: dict) -> dict:
    """What differs from train.json, as an overlay."""
    recipe = monai.bundle.ConfigParser()
    recipe.read_config(str(RECIPE))
    recipe.parse()
    theirs = recipe.get()
    return {key: value for key, value in config.items() if key[0] != "_" and theirs.get(key) != value}


def _command() -> str:
    module = sys.argv[0].endswith("__main__.py")
    return shlex.join(["python", *(["-m", "monai.bundle"] if module else sys.argv[:1]), *sys.argv[1:]])


def _git_revision() -> str | None:
    command = ["git", "-C", str(RECIPE.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a repository
        return None
