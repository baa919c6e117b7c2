"""MONAI's EnsembleEvaluator wants every member written into the config: these members are a list of files."""

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.networks.model_card import network_from_card, read_card
from scripts.networks.weights import CheckpointLoader

SHARED = ("spacing", "spatial_size", "intensity", "orientation")  # what a scan is made into before a network sees it


def read_members(ckpt_path: str | list[str], key: str = "ckpt_path") -> dict[str, dict]:
    """The card of each member by the path of its weights.

    Args:
        ckpt_path: weights, several with commas between, or a folder: all weights in it and below it, without the
            ``checkpoint_*.pt`` of training.
        key: of the config, for messages.

    Raises:
        InputError: no weights, no card, or members for which a scan would have to be prepared differently.
    """
    if not ckpt_path or not str(ckpt_path).strip():
        raise InputError(f"{key}: is empty; give weights, several with commas between, or a folder")
    paths = ckpt_path if isinstance(ckpt_path, list | tuple) else [ckpt_path]
    if isinstance(ckpt_path, str) and Path(ckpt_path).is_dir():
        paths = [p for p in sorted(Path(ckpt_path).rglob("*.pt")) if not p.name.startswith("checkpoint_")]
        if not paths:
            raise InputError(f"{ckpt_path}: no weights (*.pt) there; train first, or give others with --{key}")
    elif isinstance(ckpt_path, str) and not Path(ckpt_path).is_file():
        paths = [part.strip() for part in ckpt_path.split(",") if part.strip()] or paths
    members = {str(path): read_card(str(path), key) for path in paths}
    (first, card), *others = members.items()
    for path, other in others:
        for what in (*SHARED, "classes"):
            ours, theirs = ({**c, "classes": c["network_def"].get("out_channels", 2)}[what] for c in (card, other))
            if ours != theirs:
                raise InputError(
                    f"{path}: {what} is {theirs} in its card and {ours} in that of {first}; "
                    "members of an ensemble must see a scan alike and give the same classes"
                )
    return members


def card_of(members: dict[str, dict]) -> dict:
    """The first member's card, from which threshold and the like are taken; simulated if one of them is."""
    cards = list(members.values())
    return cards[0] if len(cards) == 1 else {**cards[0], "simulated": any(card.get("simulated") for card in cards)}


def network_of(members: dict[str, dict], norm_adaptation: float | None = None) -> torch.nn.Module:
    """The network of the only member, or a ``ModuleList`` of all, without weights.

    ``norm_adaptation`` is another than the cards', for all scans. ``InputError``: a member is none that it is for.
    """
    others = {} if norm_adaptation is None else {"norm_adaptation": norm_adaptation, "norm_shift_limit": None}
    networks = [network_from_card(card, **others) for card in members.values()]
    if norm_adaptation and not all(isinstance(network, MeshNet) for network in networks):
        raise InputError(f"norm_adaptation {norm_adaptation}: is for MeshNets only; leave it out")
    return networks[0] if len(networks) == 1 else torch.nn.ModuleList(networks)


def each(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of what ``network_of`` returned."""
    return list(network) if isinstance(network, torch.nn.ModuleList) else [network]


def normalization_of(members: dict[str, dict], norm_adaptation: float | None = None) -> dict:
    """``norm_adaptation`` and ``norm_shift_limit`` of the member, or lists of all; one given is for all scans."""
    values = {"norm_adaptation": norm_adaptation, "norm_shift_limit": None}
    if norm_adaptation is None:
        for key, default in {"norm_adaptation": 0, "norm_shift_limit": None}.items():
            found = [card["network_def"].get(key, default) for card in members.values()]
            values[key] = found if len(found) > 1 else found[0]
    return values


def adaptation_to(image: torch.Tensor, network: torch.nn.Module) -> float | None:
    """The largest share of its own statistics by which a member normalizes an image (B, C, D, H, W).

    None if a member is no MeshNet with batch normalization, whose share is an argument.
    """
    networks = each(network)
    if not all(isinstance(one, MeshNet) and isinstance(one.layers[0][1], torch.nn.BatchNorm3d) for one in networks):
        return None
    with torch.no_grad():
        return max(one.adaptation_to(image) for one in networks)


class MembersLoader:
    """Loads each member's weights into its network when an engine starts.

    Args:
        members: of ``read_members``.
        network: of ``network_of``.
        map_location: the device.
        held_out: scans that no member may have seen, as of ``CheckpointLoader``.
    """

    def __init__(
        self, members: dict[str, dict], network: torch.nn.Module, map_location: Any, held_out: list[dict] | None = None
    ) -> None:
        common = {"map_location": map_location, "held_out": held_out}
        pairs = zip(members, each(network), strict=True)
        self.loaders = [CheckpointLoader(path, {"network": one}, **common) for path, one in pairs]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        for loader in self.loaders:
            loader.attach(engine)
