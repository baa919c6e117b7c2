"""MeshNets published for the browser (brainchop, T2lesion) become weights with a card, and ours become such models."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from scripts.common.json_file import check_json, read_json
from scripts.sharing import layers_model
from scripts.weights.card import CARD, network_from_card

# How brainchop's pages hand a scan to a network, which the model does not say.
CONFORMED = {"spacing": [1.0, 1.0, 1.0], "spatial_size": [256, 256, 256], "orientation": "LIA"}
MIN_MAX = {"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0}
QUANTILES = {
    "_target_": "ScaleIntensityRangePercentilesd",
    "keys": "image",
    "lower": 5,
    "upper": 95,
    "b_min": 0.0,
    "b_max": 1.0,
}
Answer = Callable[[np.ndarray], np.ndarray]


def card_of(kind: str) -> dict:
    """The card, but for its network, of a model that another published: scans as brainchop hands them over."""
    about = f"Imported from a {kind} model: which scans it was trained on is unknown. Not for clinical use."
    return {"about": about, **CONFORMED, "intensity": [MIN_MAX], "threshold": 0.5, "license": "unknown"}


def read(model_json: str | Path) -> tuple[torch.nn.Module, dict]:
    """The network in ``model_json`` and its card: the one that ``write`` put there, else brainchop's habits.

    Raises:
        InputError: a file that cannot be read, or a network that MeshNet cannot express; the line names the layer.
    """
    arguments, state, metadata = layers_model.read(model_json)
    definition = {"_target_": "scripts.networks.meshnet.MeshNet", **arguments}
    kept = metadata.get("card") if isinstance(metadata, dict) else None
    card = {**(kept if isinstance(kept, dict) else card_of("TensorFlow.js")), "network_def": definition}
    check_json(model_json, card, CARD, layers_model.HINT)
    colors = Path(model_json).with_name("colormap.json")
    named = read_json(colors, "brainchop's names of classes") if colors.is_file() else None
    if isinstance(named, dict) and len(named.get("labels", [])) == arguments["out_channels"]:
        card["classes"] = named["labels"]
    network = network_from_card(card).eval()
    network.load_state_dict(state)
    return network, card


def write(network: torch.nn.Module, path: Path, card: dict) -> dict[str, Answer]:
    """Write ``path``, a ``model.json``, and ``model.bin`` beside it; return how what was written answers, read again.

    Raises:
        InputError: a network that a layers model cannot express.
    """
    layers_model.write(network, path, card["network_def"].get("act", "relu"), {"card": card})
    again, _ = read(path)
    return {"the importer": lambda x: again(torch.from_numpy(x)).numpy(force=True)}
