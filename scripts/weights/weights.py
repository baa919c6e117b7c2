"""Weights and what their cards say: network, grid, intensity scaling, how predictions become a mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer
from monai.transforms import Compose, Lambdad

from scripts.common.errors import InputError
from scripts.common.files import sha256
from scripts.common.json_file import problems_of
from scripts.data.lesion_parts import remove_small_lesions
from scripts.execution.agreement import Agreed, PredictionsInferer
from scripts.networks.meshnet import MeshNet
from scripts.weights.card import CARD, intensity_from_card, lineage, network_from_card, read_card, without_adaptation
from scripts.weights.checkpoint import load_weights

SHARED = ("spacing", "spatial_size", "intensity", "orientation")  # what a scan is made into before a network sees it
INHERITED = ("cohort", "simulated", "fold", "inner_fold", "epochs", "trained_on")  # by the cards of others
DEFAULTS = {"threshold": 0.5, "min_volume": 0, "flip_averaging": False}  # where neither user nor card say more


class Weights:
    """One file of weights or several, used together; everything that opens weights asks this class.

    ``members`` has each member's card by the path of its weights. ``card`` is the first one's, ``simulated`` if one of
    them is. ``orientation``, ``spacing`` (mm) and ``spatial_size`` (voxels) are the grid that a scan is brought to.
    ``settings`` say how a mask is made: ``threshold``, ``min_volume`` (mm3), ``flip_averaging``, ``norm_adaptation``
    and ``norm_shift_limit``. The last two are lists where there are several members.

    Args:
        ckpt_path: weights, several with commas between or as a list, or a folder: all weights in it and below it,
            without the ``checkpoint_*.pt`` and ``model_last.pt`` of training.
        key: of the config, for messages.
        threshold: the mask's voxels are more probable, as in argmax for 0.5; None: the card's, as for the next three.
        min_volume: smallest lesion that is kept, in mm3.
        flip_averaging: whether the mirror image is predicted, too.
        norm_adaptation: share of a scan's own statistics, whatever the scan; 0 for none.
        single: only one file is taken.

    Raises:
        InputError: no weights, no card, several where one is taken, a value out of its range, a norm_adaptation for
            networks other than MeshNets, or members for which a scan would have to be prepared differently.
    """

    def __init__(
        self,
        ckpt_path: str | Sequence[str] | None,
        key: str = "ckpt_path",
        threshold: float | None = None,
        min_volume: float | None = None,
        flip_averaging: bool | None = None,
        norm_adaptation: float | None = None,
        single: bool = False,
    ) -> None:
        self.members = _read_members(ckpt_path, key)
        if single and len(self.members) > 1:
            raise InputError(f"{key} {ckpt_path}: {len(self.members)} files of weights; give one")
        if norm_adaptation is not None:
            self.members = {path: _adapted(card, norm_adaptation) for path, card in self.members.items()}
        cards = list(self.members.values())
        self.card = cards[0] if len(cards) == 1 else {**cards[0], "simulated": any(c.get("simulated") for c in cards)}
        self.orientation, self.spacing, self.spatial_size = (self.card[k] for k in ("orientation", *SHARED[:2]))
        given = {"threshold": threshold, "min_volume": min_volume, "flip_averaging": flip_averaging}
        self.settings = {k: self.card.get(k, DEFAULTS[k]) if value is None else value for k, value in given.items()}
        for name, default in {"norm_adaptation": 0, "norm_shift_limit": None}.items():
            found = [card["network_def"].get(name, default) for card in cards]
            self.settings[name] = found if len(found) > 1 else found[0]
        told = {name: value for name, value in self.settings.items() if not isinstance(value, list)}
        if problems := list(problems_of(told, {"properties": CARD["properties"]})):
            raise InputError("\n".join(f"{problem}; see docs/segmenting.md" for problem in problems))

    @property
    def predictions(self) -> int:
        """How many there are of a scan: each member's, and those of its mirror image."""
        return len(self.members) * (2 if self.settings["flip_averaging"] else 1)

    @property
    def intensity(self) -> Compose:
        """The transforms that scale intensities as in training."""
        return intensity_from_card(self.card)

    @property
    def ancestry(self) -> list[dict]:
        """What a card of others tells of these weights, which they start from or are taught by; the oldest first."""
        known = []
        for path, card in self.members.items():
            parent = {"weights": Path(path).name, "sha256": sha256(path)}
            known += [*lineage(card)[1:], parent | {key: card[key] for key in INHERITED if key in card}]
        return known

    def network(self, **arguments: Any) -> torch.nn.Module:
        """The network with its weights on the CPU, or a ``ModuleList`` of all.

        ``arguments`` are of the network's class and replace the card's; those that it does not take are left out.

        Raises:
            InputError: weights of another network, a file that is none, or ``frozen_layers`` of another than a MeshNet.
        """
        networks = []
        for path, card in self.members.items():
            network = network_from_card(card, **arguments)
            if arguments.get("frozen_layers") and not isinstance(network, MeshNet):
                raise InputError(f"frozen_layers {arguments['frozen_layers']}: is for MeshNets only; leave it out")
            load_weights(path, network)
            networks.append(network)
        return networks[0] if len(networks) == 1 else torch.nn.ModuleList(networks)

    def inferer(self, inferer: Inferer) -> PredictionsInferer:
        """All ``predictions`` of a scan; ``inferer`` makes one."""
        return PredictionsInferer(inferer, self.settings["flip_averaging"], self.orientation)

    @property
    def probability(self) -> Agreed:
        """The transform from an item's predictions, its ``pred``, to the probability of lesion (1, D, H, W)."""
        views = self.predictions // len(self.members)
        return Agreed("pred", len(self.members), views, self.settings["threshold"])

    @property
    def mask(self) -> Compose:
        """The transform from an item's probability, its ``pred``, on whatever grid, to the mask."""
        least = self.settings["min_volume"]
        above = Lambdad("pred", lambda probability: (probability > self.settings["threshold"]).float())
        small = Lambdad("pred", lambda mask: remove_small_lesions(mask, least))
        return Compose([above, *[small] * bool(least)])

    def refuse_seen(self, scans: list[dict]) -> None:
        """Raise InputError if a member, or what it was made of, was trained on one of ``scans``, by ``sha256``."""
        for path, card in self.members.items():
            seen = {scan for one in lineage(card) for scan in one.get("trained_on", [])}
            known = [scan["image"] for scan in scans if scan["sha256"]["image"][:16] in seen]
            if known:
                raise InputError(
                    f"{path}: trained on {len(known)} of the {len(scans)} scans that are the test set here, such as "
                    f"{known[0]}; give the --fold that these weights held out, or other weights"
                )


def _read_members(ckpt_path: str | Sequence[str] | None, key: str) -> dict[str, dict]:
    if not ckpt_path or not str(ckpt_path).strip():
        raise InputError(f"{key}: none is given; give weights, several with commas between, or a folder")
    paths = ckpt_path if isinstance(ckpt_path, list | tuple) else [ckpt_path]
    if isinstance(ckpt_path, str) and Path(ckpt_path).is_dir():
        states = ("checkpoint_", "model_last.")
        paths = [p for p in sorted(Path(ckpt_path).rglob("*.pt")) if not p.name.startswith(states)]
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


def _adapted(card: dict, share: float) -> dict:
    """The card of a network that normalizes by this share of the scan's own statistics, whatever the scan."""
    card = without_adaptation(card)
    if share and not card["network_def"]["_target_"].endswith(".MeshNet"):
        raise InputError(f"norm_adaptation {share}: is for MeshNets only; leave it out")
    return {**card, "network_def": {**card["network_def"], **({"norm_adaptation": share} if share else {})}}
