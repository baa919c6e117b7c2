"""Weights are written with a card, and read without running code; what does not fit, or saw the test, is a line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.common.files import replace_files
from scripts.networks.model_card import lineage, read_card


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
        if "Unsupported global" in str(error) or "Unsupported operand" in str(error):
            raise InputError(f"{path}: contains code besides weights, refused; save a state_dict") from error
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"{path}: not a torch checkpoint ({reason})") from error


def refuse_other_weights(path: str, ours: Mapping, theirs: Mapping) -> None:
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
        file.write((json.dumps(card, indent=4) + "\n").encode())


def parameters_to_train(network: torch.nn.Module, frozen_layers: int) -> dict[str, torch.nn.Parameter]:
    """All parameters by name, but those of the first ``frozen_layers`` blocks of ``network.layers``.

    Raises:
        InputError: the network has not so many.
    """
    layers = len(getattr(network, "layers", ()))
    if not 0 <= frozen_layers <= layers:
        raise InputError(f"frozen_layers {frozen_layers}: expected 0 to {layers}, the layers this network can freeze")
    frozen = tuple(f"layers.{i}." for i in range(frozen_layers))
    return {name: p for name, p in network.named_parameters() if not name.startswith(frozen)}


class CheckpointLoader(monai.handlers.CheckpointLoader):
    """MONAI's loader, but weights that do not fit are one line that says why.

    Args:
        args: arguments of ``monai.handlers.CheckpointLoader``.
        held_out: the scans that are evaluated, with the ``sha256`` of their ``image``; weights whose card says that
            they, or their teachers, were trained on one of them are refused.
        kwargs: the same by name.

    Raises:
        InputError: no such file, no torch checkpoint, weights of another network, or trained on these scans.
    """

    def __init__(self, *args: Any, held_out: list[dict] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held_out = held_out or []

    def __call__(self, engine: Engine) -> None:
        """Load; called when the engine starts."""
        if self.held_out and Path(self.load_path).with_suffix(".json").is_file():
            card = read_card(self.load_path)
            seen = {scan for one in lineage(card) for scan in one.get("trained_on", [])}
            known = [scan["image"] for scan in self.held_out if scan["sha256"]["image"][:16] in seen]
            if known:
                raise InputError(
                    f"{self.load_path}: trained on {len(known)} of the {len(self.held_out)} scans that are the test "
                    f"set here, such as {known[0]}; give the --fold that these weights held out, or other weights"
                )
        weights = read_checkpoint(self.load_path, self.map_location)
        for name, module in self.load_dict.items():
            theirs = weights.get(name, weights) if isinstance(weights, Mapping) else weights
            refuse_other_weights(self.load_path, module.state_dict(), theirs)
        super().__call__(engine)
