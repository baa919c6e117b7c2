"""Several predictions of one scan, by an ensemble's members and of its mirror image: their mean, and how they agree."""

from itertools import combinations
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from scripts.networks.meshnet import MeshNet


def each(network: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of a ``ModuleList``, or the only network."""
    return list(network) if isinstance(network, torch.nn.ModuleList) else [network]


def adaptation_to(image: torch.Tensor, network: torch.nn.Module) -> float | None:
    """The largest share of its own statistics by which a member normalizes an image (B, C, D, H, W).

    None if a member is no MeshNet with batch normalization, whose share is an argument.
    """
    networks = each(network)
    if not all(isinstance(one, MeshNet) and isinstance(one.layers[0][1], torch.nn.BatchNorm3d) for one in networks):
        return None
    with torch.no_grad():
        return max(one.adaptation_to(image) for one in networks)


class PredictionsInferer(Inferer):
    """All predictions of an image (B, C, D, H, W).

    Args:
        inferer: makes one.
        flip_averaging: also one of the mirror image, put back.
        orientation: of the image, such as RAS: what is mirrored is left and right.
    """

    def __init__(self, inferer: Inferer, flip_averaging: bool = False, orientation: str = "RAS") -> None:
        super().__init__()
        self.inferer, self.flip_averaging = inferer, flip_averaging
        self.axis = 2 + next(i for i, side in enumerate(orientation) if side in "LR")

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits (B, members * views * classes, D, H, W) of the network, or of each in a ``ModuleList``."""
        predictions = []
        for member in each(network):
            share = member.adaptation_to(inputs) if isinstance(member, MeshNet) else None  # all views have the same
            for flip in ([], [self.axis])[: 1 + self.flip_averaging]:
                view = inputs.flip(flip)
                adapted = member if share is None else member.adapted_to(view, share)
                predictions.append(self.inferer(view, adapted, *args, **kwargs).flip(flip))
        return torch.cat(predictions, 1)


class Agreed(MapTransform):
    """From the logits of ``PredictionsInferer``, without their batch, to what the predictions agree upon.

    In their place comes the probability of lesion (1, D, H, W), with the affine of the item's ``image``: logits are
    averaged over a member's views, probabilities over members. Besides, an item gets

    - ``uncertainty`` (1, D, H, W): the standard deviation of the predictions' probabilities of lesion, from 0 to 0.5,
      as in Nair et al., Exploring uncertainty measures in deep networks for multiple sclerosis lesion detection and
      segmentation (doi 10.1016/j.media.2019.101557), where it is the variance;
    - ``quality``: the mean DICE of all pairs of the predictions' masks, Roy et al., Bayesian QuickNAT
      (doi 10.1016/j.neuroimage.2019.03.042); None of one prediction, or where no prediction finds a lesion. Two empty
      masks are no pair: that both miss a lesion says nothing of how well a third one draws it.

    Args:
        keys: the logits.
        members: their number.
        views: the number of predictions of each member.
        threshold: a mask's voxels are more probable.
    """

    def __init__(self, keys: KeysCollection, members: int = 1, views: int = 1, threshold: float = 0.5) -> None:
        super().__init__(keys)
        self.shape = (members, views, -1)
        self.threshold = threshold

    def __call__(self, data: dict) -> dict:
        """The item with them."""
        data = dict(data)
        for key in self.keys:
            logits = convert_to_tensor(data[key], track_meta=False).unflatten(0, self.shape)
            probability = logits.mean(1).softmax(1).mean(0)[1:2]
            data[key] = MetaTensor(probability, affine=getattr(data.get("image"), "affine", None))
            lesion = logits.flatten(0, 1).softmax(1)[:, 1]
            data["uncertainty"] = MetaTensor(lesion.std(0, correction=0, keepdim=True), affine=data[key].affine)
            data["quality"] = mean_pairwise_dice(lesion > self.threshold)
        return data


def mean_pairwise_dice(masks: torch.Tensor) -> float | None:
    """Of masks (N, D, H, W; boolean): the mean over pairs of which one is not empty, None without such a pair."""
    pairs = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in combinations(masks, 2) if a.any() or b.any()]
    return float(torch.stack(pairs).mean()) if pairs else None
