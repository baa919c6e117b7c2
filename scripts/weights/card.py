"""The card beside weights: what is needed to rebuild their network, and to trust them."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import monai
import torch

from scripts.common.errors import InputError
from scripts.common.json_file import RANGES, check_json, read_json
from scripts.weights.checkpoint import read_checkpoint

# A card is data that people share: it names these classes only, with plain values, and nothing in it is evaluated.
# None of them reads or writes a file, or fetches an address.
NETWORKS = {
    "monai.networks.nets": (
        *("AttentionUnet", "BasicUNet", "BasicUNetPlusPlus", "DynUNet", "HighResNet", "MedNeXt", "SegResNet"),
        *("SegResNetDS", "SwinUNETR", "UNet", "UNETR", "VNet"),
    ),
    "scripts.networks.meshnet": ("MeshNet",),
    "scripts.networks.boosted_trees": ("BoostedTrees",),
}
INTENSITY = {
    "monai.transforms": (
        *("ClipIntensityPercentilesd", "NormalizeIntensityd", "ScaleIntensityd", "ScaleIntensityRanged"),
        *("ScaleIntensityRangePercentilesd", "ThresholdIntensityd"),
    )
}
_COMPONENT = {"type": "object", "required": ["_target_"], "properties": {"_target_": {"type": "string"}}}
_SCANS = {"type": "array", "items": {"type": "string"}}
_PARENTS = {"type": "array", "items": {"type": "object", "properties": {"trained_on": _SCANS}}}
_LIMITS = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}}
CARD = {
    "type": "object",
    "required": ["network_def", "spacing", "spatial_size", "intensity"],
    "properties": {
        "network_def": _COMPONENT,
        **{key: RANGES[key] for key in ("spacing", "spatial_size", "orientation")},
        "intensity": {"type": "array", "items": _COMPONENT},
        "trained_on": _SCANS,
        "ancestry": _PARENTS,
        "teachers": _PARENTS,
        "threshold": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        "min_volume": {"type": "number", "minimum": 0},
        "flip_averaging": {"type": "boolean"},
        "norm_adaptation": {"type": "number", "minimum": 0, "maximum": 1},
        "usual": {"type": "object", "additionalProperties": _LIMITS},
    },
}
RELEASED = Path(__file__).resolve().parents[2] / "models"
HINT = "training writes the card beside its weights, see models/README.md"


def read_card(ckpt_path: str, key: str = "ckpt_path") -> dict:
    """The card beside ``ckpt_path``: what it must hold is in ``CARD``, spacing in mm, and both of the grid along
    the axes of its ``orientation``, RAS where it has none. A training's state has its card within. ``key`` is that of
    the config, for messages.

    Raises:
        InputError: no weights, no card, or a card that is not as ``CARD`` says.
    """
    if not Path(ckpt_path).is_file():
        released = ", ".join(sorted(path.name for path in RELEASED.glob("*.pt")))
        if Path(ckpt_path).resolve().parent == RELEASED and released:
            raise InputError(f"{ckpt_path}: no such file; there are {released}, see models/README.md")
        raise InputError(f"{ckpt_path}: no such file; train first, or give the weights with --{key}")
    path = Path(ckpt_path).with_suffix(".json")
    state = read_checkpoint(ckpt_path) if path.name.startswith("checkpoint_") and not path.is_file() else {}
    card = state.get("card") or read_json(path, HINT)
    if isinstance(card, dict) and "network_def" not in card and "channels" in card:  # of version 0.4.0 or before
        network = {"_target_": "scripts.networks.meshnet.MeshNet", "channels": card["channels"]}
        scaling = {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0}
        card = {**card, "network_def": network, "intensity": [scaling]}
    check_json(path, card, CARD, HINT)
    return {"orientation": "RAS", **card}


def without_adaptation(card: dict) -> dict:
    """The card, whose network normalizes by the running statistics whatever the scan."""
    definition = {k: v for k, v in card["network_def"].items() if k not in ("norm_adaptation", "norm_shift_limit")}
    return {**card, "network_def": definition}


def lineage(card: dict) -> list[dict]:
    """The card, and what it tells of weights that its own were started from or taught by."""
    return [card, *card.get("ancestry", []), *card.get("teachers", [])]


def network_from_card(card: dict, **arguments: Any) -> torch.nn.Module:
    """The network that a card describes, without weights; of other ``arguments``, those that its class takes.

    Raises:
        InputError: a network or an argument that does not exist.
    """
    return _build("network_def", card["network_def"], NETWORKS, arguments)


def intensity_from_card(card: dict) -> monai.transforms.Compose:
    """The transforms that scale the intensities as they were in training.

    Raises:
        InputError: a transform or an argument that does not exist.
    """
    return monai.transforms.Compose([_build("intensity", definition, INTENSITY) for definition in card["intensity"]])


def _build(key: str, definition: dict, allowed: dict[str, tuple[str, ...]], others: dict | None = None) -> Any:
    """What ``definition`` names, if it is ``allowed`` by module, with ``others`` that its class takes."""
    arguments = dict(definition)
    module, _, name = arguments.pop("_target_").rpartition(".")
    module = module or next(iter(allowed))
    kind = getattr(importlib.import_module(module), name, None) if module in allowed else None
    if getattr(kind, "__name__", None) not in allowed.get(module, ()):
        names = ", ".join(name for names in allowed.values() for name in names)
        raise InputError(f"card: {key}: {module}.{name} is none of {names}; refused")
    for argument, value in arguments.items():
        if not _is_plain(value):
            raise InputError(f"card: {key}: {argument} {value!r}: expected numbers, words or lists of them; refused")
    known = inspect.signature(kind).parameters
    try:
        return kind(**arguments | {key: value for key, value in (others or {}).items() if key in known})
    except (TypeError, ValueError) as error:
        raise InputError(f"card: {key}: {name} cannot be built ({error})") from error


def _is_plain(value: Any) -> bool:
    """Whether a value names no file, address or module: numbers, words, and lists and blocks of them."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and not key.startswith("_") and _is_plain(v) for key, v in value.items())
    return value is None or isinstance(value, bool | int | float) or bool(re.fullmatch(r"\w*", str(value)))
