"""MONAI's checkpoint handlers delete the old file before writing the new, and fail on another width with a page."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine
from ignite.handlers import DiskSaver

from scripts.scans import InputError


class _AtomicDiskSaver(DiskSaver):
    """Writes beside the old file, flushes to the disk, then replaces: a kill leaves the old file or the new one."""

    def __init__(self, dirname: str, filename: str | None, card: dict | None) -> None:
        super().__init__(dirname, require_empty=False)
        self.filename = filename
        self.card = card

    def _save_func(self, checkpoint: Mapping, path: Path, func: Any) -> None:
        path = path if self.filename is None else self.dirname / self.filename
        partial = path.with_name(f".{path.name}.tmp")
        with partial.open("wb") as file:
            func(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        if self.card is not None:
            partial.write_text(json.dumps(self.card, indent=4) + "\n")
            partial.replace(path.with_suffix(".json"))

    def remove(self, filename: str) -> None:
        if self.filename is None:  # a fixed name is replaced, not removed
            (self.dirname / filename).unlink(missing_ok=True)


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's saver, but atomic, and an exception leaves no "final" checkpoint behind.

    Args:
        card: what must be known to use the weights (width, grid, cohort); written as JSON beside each checkpoint.
        save_engine: also save the state of the engine this is attached to, as ``trainer``.
        kwargs: arguments of ``monai.handlers.CheckpointSaver``.
    """

    def __init__(self, card: dict | None = None, save_engine: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_engine = save_engine
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                filename = checkpoint.save_handler.filename
                checkpoint.save_handler = _AtomicDiskSaver(self.save_dir, filename, card)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or evaluator."""
        if self.save_engine:  # a config cannot refer to the trainer from within the trainer's own handlers
            self.save_dict["trainer"] = engine
        super().attach(engine)

    def exception_raised(self, engine: Engine, e: Exception) -> None:
        """Do not save an unfinished run as a finished one."""
        raise e


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's loader, but weights that do not fit are one line that says why.

    Raises:
        InputError: no such file, no torch checkpoint, or weights of another network.
    """

    def __call__(self, engine: Engine) -> None:
        """Load; called when the engine starts."""
        weights = _read_weights(self.load_path, self.map_location)
        for name, module in self.load_dict.items():
            ours, theirs = module.state_dict(), weights.get(name, weights)
            for key in [*ours, *theirs]:
                if key not in ours or key not in theirs:
                    where = "the network" if key not in ours else "the file"
                    raise InputError(f"{self.load_path}: not weights of this network ({where} has no {key})")
                if ours[key].shape != theirs[key].shape:
                    raise InputError(
                        f"{self.load_path}: weights of another width, {key} is {tuple(theirs[key].shape)} there and "
                        f"{tuple(ours[key].shape)} here; pass --channels {len(theirs['layers.0.0.weight'])}"
                    )
        super().__call__(engine)


def _read_weights(path: str, map_location: Any = "cpu") -> dict:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; train first, or give the weights with --ckpt_path")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # zip, pickle and torch raise unrelated types for a file that is no checkpoint
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a torch checkpoint ({reason})") from error


def read_card(ckpt_path: str) -> dict:
    """The model card that was written beside ``ckpt_path``: at least ``channels``, ``spacing``, ``spatial_size``.

    Raises:
        InputError: no weights or no card.
    """
    if not Path(ckpt_path).is_file():
        raise InputError(
            f"{ckpt_path}: no such file; train first (python -m monai.bundle run training --config_file "
            "configs/train.json) or give the weights with --ckpt_path"
        )
    card = Path(ckpt_path).with_suffix(".json")
    try:
        content = json.loads(card.read_text())
        return {**content, **{key: content[key] for key in ("channels", "spacing", "spatial_size")}}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{card}: the weights' card is missing or incomplete ({error}); training writes it, "
            'or write {"channels": 26, "spacing": [1, 1, 1], "spatial_size": [256, 256, 256]} with your values'
        ) from error
