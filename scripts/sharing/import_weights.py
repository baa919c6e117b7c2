"""Import MeshNets that others published: PyTorch checkpoints, and TensorFlow.js models of brainchop and T2lesion."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from scripts.common.errors import InputError
from scripts.common.json_file import check_json
from scripts.networks.meshnet import PAPER_DILATIONS
from scripts.sharing import brainchop
from scripts.weights.card import CARD, network_from_card
from scripts.weights.checkpoint import new_weights, read_checkpoint, refuse_other_weights, write_weights

WRAPPERS = ("model_state_dict", "state_dict", "network", "model")  # where a checkpoint of others keeps its weights
# Names of others and ours: arc-meshchop has conv and bn, brainchop's training 0 and 1, or conv and bnorm.
NAMES = (
    (r"(?:module\.)?(?:network|model)\.(\d+)\.(?:conv|0)\.", r"layers.\1.0."),
    (r"(?:module\.)?(?:network|model)\.(\d+)\.(?:bn|bnorm|1)\.", r"layers.\1.1."),
    (r"(?:module\.)?(?:network|model)\.\d+\.(?=weight$|bias$)", "classifier."),
)


def import_weights(
    path: str,
    output: str,
    license: str = "unknown",
    quantiles: bool = False,
    orientation: str | None = None,
    dilations: Sequence[int] | None = None,
) -> None:
    """Write the weights and the card of a MeshNet that others published.

    The card says how brainchop hands a scan to a network: 256 x 256 x 256 voxels of 1 mm, intensities from 0 to 1.

    Args:
        path: a TensorFlow.js layers model, ``model.json``, with its files of weights beside it; or a PyTorch
            checkpoint, a ``state_dict`` alone or within a dictionary, of which no code is run.
        output: the weights to write, such as ``models/name.pt``; the card goes beside them. Neither is replaced.
        license: of the model, for the card.
        quantiles: intensities are scaled from their 5th and 95th percentile instead of their least and most, for the
            models with ``enableQuantileNorm`` in brainchop's list. A model that we exported says it itself.
        orientation: of the scans that the network takes; by default LIA for TensorFlow.js, RAS for PyTorch.
        dilations: of a PyTorch checkpoint's layers, which it does not say; by default the paper's.

    Raises:
        InputError: a file that cannot be read, or a network that MeshNet cannot express; the line names the layer.
    """
    weights = new_weights(output)
    if Path(path).suffix == ".json":
        if dilations is not None:
            raise InputError(f"--dilations: {path} says them itself; leave them out")
        network, card = brainchop.read(path)
    else:
        network, card = read(path, PAPER_DILATIONS if dilations is None else dilations)
    if license != "unknown":
        card["license"] = license
    if orientation:
        card["orientation"] = orientation
    if quantiles:
        card["intensity"] = [brainchop.QUANTILES]
    check_json(path, card, CARD, "give another --orientation")
    write_weights(weights, network, card)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"Written: {weights} and its card ({count:,} parameters, {card['network_def']['out_channels']} classes)")


def read(path: str | Path, dilations: Sequence[int] = PAPER_DILATIONS) -> tuple[torch.nn.Module, dict]:
    """The network whose weights are in the PyTorch checkpoint at ``path``, and a card for it.

    Raises:
        InputError: see ``import_weights``.
    """
    dilations = [dilations] if isinstance(dilations, int) else list(dilations)  # a command's --dilations 3
    checkpoint = read_checkpoint(path)
    while isinstance(checkpoint, Mapping) and (found := [key for key in WRAPPERS if key in checkpoint]):
        checkpoint = checkpoint[found[0]]
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{path}: not weights but a {type(checkpoint).__name__}; save a state_dict")
    state = {_our_name(str(key)): value for key, value in checkpoint.items()}
    first, last = state.get("layers.0.0.weight"), state.get("classifier.weight")
    if getattr(first, "ndim", 0) != 5 or getattr(last, "ndim", 0) != 5:
        known = "network.0.conv.weight, model.0.0.weight or layers.0.0.weight"
        raise InputError(f"{path}: no MeshNet: none of its weights is {known}, or none is the last layer's")
    definition = {"_target_": "scripts.networks.meshnet.MeshNet", "in_channels": first.shape[1]}
    definition |= {"out_channels": last.shape[0], "channels": first.shape[0], "dilations": dilations}
    definition["norm"] = "batch" if "layers.0.1.running_mean" in state else None
    card = {**brainchop.card_of("PyTorch"), "orientation": "RAS", "network_def": definition}
    network = network_from_card(card).eval()
    for i in range(len(dilations)):  # a convolution before a normalization often has no bias
        state.setdefault(f"layers.{i}.0.bias", torch.zeros(first.shape[0]))
    if f"layers.{len(dilations)}.0.weight" in state or f"layers.{len(dilations) - 1}.0.weight" not in state:
        n = len([key for key in state if re.fullmatch(r"layers\.\d+\.0\.weight", key)])
        raise InputError(f"{path}: {n} dilated layers, --dilations names {len(dilations)}; give one for each layer")
    refuse_other_weights(path, network.state_dict(), state)
    network.load_state_dict(state)
    return network, card


def _our_name(name: str) -> str:
    for theirs, ours in NAMES:
        if re.match(theirs, name):
            return re.sub(theirs, ours, name, count=1)
    return name.removeprefix("module.")
