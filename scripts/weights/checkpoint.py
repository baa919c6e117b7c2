"""Files of weights: written with their card, read without running code; what does not fit is a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from scripts.common.errors import InputError
from scripts.common.files import replace_files


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict:
    """What ``torch.save`` wrote to ``path``, without running any code in it.

    Raises:
        InputError: no such file, no torch checkpoint, or one that holds code.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; train first, or give the weights with --ckpt_path")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # zip, pickle and torch raise unrelated types for a file that is no checkpoint
        if "TorchScript" in str(error):
            raise InputError(f"{path}: a TorchScript archive, not weights; save a state_dict") from error
        if "Weights only load failed" in str(error):
            raise InputError(f"{path}: contains more than weights, such as code; refused; save a state_dict") from error
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise InputError(f"{path}: not a torch checkpoint ({reason})") from error


def refuse_other_weights(path: str | Path, ours: Mapping, theirs: Mapping) -> None:
    """Raise InputError if the weights ``theirs``, from ``path``, are not of the network with the weights ``ours``."""
    if not isinstance(theirs, Mapping):
        raise InputError(f"{path}: not weights but a {type(theirs).__name__}; save a state_dict")
    for key in [*ours, *theirs]:
        if key not in ours or key not in theirs:
            where = "the network" if key not in ours else "the file"
            raise InputError(f"{path}: not weights of this network ({where} has no {key})")
        if ours[key].shape != theirs[key].shape:
            raise InputError(
                f"{path}: weights of another network, {key} is {tuple(theirs[key].shape)} there and "
                f"{tuple(ours[key].shape)} here; give the arguments of the network that was trained (--channels, ...)"
            )


def new_weights(output: str) -> Path:
    """The path ``output`` for weights that are not there yet, nor a card beside them, else InputError."""
    path = Path(str(output))
    if path.suffix != ".pt":
        raise InputError(f"--output {output}: expected a name that ends with .pt")
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            raise InputError(f"{file}: is there already, so not replaced; give another --output")
    return path


def write_weights(path: Path, network: torch.nn.Module, card: dict) -> None:
    """Write the weights of ``network`` to ``path`` and its card beside them, both or neither."""
    with replace_files([path, path.with_suffix(".json")], "wb") as (weights, file):
        torch.save(network.state_dict(), weights)
        file.write((json.dumps(card, indent=4, allow_nan=False) + "\n").encode())


def load_weights(path: str | Path, network: torch.nn.Module) -> None:
    """Load the weights at ``path``, a ``state_dict`` or a training's state with its ``network``, into ``network``.

    Raises:
        InputError: no such file, no torch checkpoint, or weights of another network.
    """
    weights = read_checkpoint(path)
    weights = weights.get("network", weights) if isinstance(weights, Mapping) else weights
    refuse_other_weights(path, network.state_dict(), weights)
    network.load_state_dict(weights)
