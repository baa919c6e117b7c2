"""MONAI's checkpoint handlers delete the old file before writing the new, and fail on another width with a page."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine
from ignite.handlers import DiskSaver

from scripts.common.errors import InputError
from scripts.common.files import replace_file


class _AtomicDiskSaver(DiskSaver):
    """Puts the new file in the place of the old one when it is whole."""

    def __init__(self, dirname: str, filename: str | None, card: dict | None) -> None:
        super().__init__(tempfile.gettempdir(), require_empty=False)  # it would make the folder before it is claimed
        self.dirname, self.filename = Path(dirname), filename
        self.card = card

    def _save_func(self, checkpoint: Mapping, path: Path, func: Any) -> None:
        path = path if self.filename is None else self.dirname / self.filename
        with replace_file(path, "wb") as file:
            func(checkpoint, file)
        if self.card is not None:
            with replace_file(path.with_suffix(".json")) as file:
                file.write(json.dumps(self.card, indent=4) + "\n")

    def remove(self, filename: str) -> None:
        if self.filename is None:  # a fixed name is replaced, not removed
            (self.dirname / filename).unlink(missing_ok=True)


class CheckpointSaver(monai.handlers.CheckpointSaver):
    """MONAI's saver, but atomic, right after a resume, and an exception leaves no "final" checkpoint behind.

    Args:
        save_dir: folder, made when something is saved.
        args: further arguments of ``monai.handlers.CheckpointSaver``.
        card: what must be known to use the weights (width, grid, cohort); written as JSON beside each checkpoint.
        kwargs: the same by name.
    """

    def __init__(self, save_dir: str, *args: Any, card: dict | None = None, **kwargs: Any) -> None:
        super().__init__(tempfile.gettempdir(), *args, **kwargs)
        self.save_dir = save_dir
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                filename = checkpoint.save_handler.filename
                checkpoint.save_handler = _AtomicDiskSaver(self.save_dir, filename, card)

    def metrics_completed(self, engine: Engine) -> None:
        """Save if this epoch is the best: by the engine's own record, which a resume restores."""
        if getattr(engine.state, "best_metric_epoch", engine.state.epoch) == engine.state.epoch:
            super().metrics_completed(engine)

    def exception_raised(self, engine: Engine, e: Exception) -> None:
        """Do not save an unfinished run as a finished one."""
        raise e


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's loader, but weights that do not fit are one line that says why.

    Args:
        args: arguments of ``monai.handlers.CheckpointLoader``.
        held_out: ``cohort`` and ``fold`` that are evaluated; weights whose card names this cohort and another fold were
            trained on these scans.
        kwargs: the same by name.

    Raises:
        InputError: no such file, no torch checkpoint, weights of another network, or trained on these scans.
    """

    def __init__(self, *args: Any, held_out: dict | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held_out = held_out

    def __call__(self, engine: Engine) -> None:
        """Load; called when the engine starts."""
        card = Path(self.load_path).with_suffix(".json")
        if self.held_out and card.is_file():
            ours, theirs = self.held_out, json.loads(card.read_text())
            if theirs.get("cohort") == ours["cohort"] and theirs.get("fold") != ours["fold"]:
                raise InputError(
                    f"{self.load_path}: trained with fold {theirs.get('fold')} held out, so on scans of fold "
                    f"{ours['fold']}, which would be the test set here; pass --fold {theirs.get('fold')}"
                )
        weights = read_checkpoint(self.load_path, self.map_location)
        for name, module in self.load_dict.items():
            refuse_other_weights(self.load_path, module.state_dict(), weights.get(name, weights))
        super().__call__(engine)


def refuse_other_weights(path: str, ours: Mapping, theirs: Mapping) -> None:
    """Raise InputError if the weights ``theirs``, from ``path``, are not of the network with the weights ``ours``."""
    for key in [*ours, *theirs]:
        if key not in ours or key not in theirs:
            where = "the network" if key not in ours else "the file"
            raise InputError(f"{path}: not weights of this network ({where} has no {key})")
        if ours[key].shape != theirs[key].shape:
            raise InputError(
                f"{path}: weights of another width, {key} is {tuple(theirs[key].shape)} there and "
                f"{tuple(ours[key].shape)} here; pass --channels {len(theirs['layers.0.0.weight'])}"
            )


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict:
    """What ``torch.save`` wrote to ``path``, without running any code in it.

    Raises:
        InputError: no such file, or no torch checkpoint.
    """
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
