"""Classify voxels by scikit-learn's boosted trees, kept as tensors in the shape of a network.

So their weights load like any other's, without running code, and whatever takes a network takes them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.utils import convert_to_tensor
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

from scripts.common.errors import InputError


class BoostedTrees(nn.Module):
    """The log odds of lesion of each voxel: a prior and what each tree adds, from the voxel's features.

    These are, in this order: the intensity; its averages by Gaussians; the difference of each of them from its mirror
    image, left to right about the middle of the grid; and the position, along the grid's axes in mm from the centre of
    mass of the intensities. ``learn`` fills in the trees; before it, all odds are even.

    Args:
        trees: how many.
        leaves: of a tree, at most; inner nodes are one fewer.
        smoothing: standard deviations of the Gaussians, in mm.
        spacing: of the grid, in mm.
        orientation: of the grid, such as RAS.
    """

    def __init__(
        self,
        trees: int = 100,
        leaves: int = 31,
        smoothing: Sequence[float] = (3.0, 6.0, 12.0, 24.0),
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        orientation: str = "RAS",
    ) -> None:
        super().__init__()
        for name, value, least in (("trees", trees, 1), ("leaves", leaves, 2)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r} (expected an integer)")
        if not isinstance(smoothing, Sequence) or not all(mm > 0 for mm in smoothing):
            raise ValueError(f"smoothing must be a list of standard deviations in mm, above 0, got {smoothing!r}")
        self.smoothing, self.spacing = smoothing, spacing
        self.left_right = 2 + next(axis for axis, side in enumerate(orientation) if side in "LR")
        size = (trees, 2 * leaves - 1)
        # The threshold of an inner node, the log odds of a leaf: a parameter, so that it counts as one.
        self.number = nn.Parameter(torch.zeros(size), requires_grad=False)
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int32))
        self.register_buffer("prior", torch.zeros(()))

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Of an image (B, 1, D, H, W): (B, 2 + 2 scales + 3, D, H, W) in float32."""
        image = convert_to_tensor(image)
        with torch.autocast(image.device.type, enabled=False):
            image = image.float()
            averages = [separable_filtering(image, self._gaussians(mm), mode="replicate") for mm in self.smoothing]
            scales = torch.cat([image, *averages], dim=1)
            return torch.cat([scales, scales - scales.flip(self.left_right), self._position(image)], dim=1)

    def _gaussians(self, mm: float) -> list[torch.Tensor]:
        return [gaussian_1d(torch.tensor(mm / size), approx="sampled", normalize=True) for size in self.spacing]

    def _position(self, image: torch.Tensor) -> torch.Tensor:
        mass = image.clamp(min=0) + 1e-12  # an empty scan has its centre in the middle
        axes = []
        for axis, size in zip((2, 3, 4), self.spacing, strict=True):
            shape = [-1 if i == axis else 1 for i in range(5)]
            mm = size * torch.arange(image.shape[axis], device=image.device, dtype=torch.float32).view(shape)
            centre = (mass * mm).sum(dim=(1, 2, 3, 4), keepdim=True) / mass.sum(dim=(1, 2, 3, 4), keepdim=True)
            axes.append((mm - centre).expand(image.shape))
        return torch.cat(axes, dim=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (B, 1, D, H, W) to logits (B, 2, D, H, W), whose difference is the log odds.

        Raises:
            InputError: it is being traced or exported.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise InputError("boosted trees cannot be exported; segment with configs/inference.json")
        features = self.features(image).unbind(dim=1)
        log_odds = self.prior.expand(features[0].shape)
        trees = (tensor.tolist() for tensor in (self.feature, self.number, self.left, self.right))
        for tree in zip(*trees, strict=True):
            log_odds = log_odds + _grown(tree, features)
        return torch.stack([-log_odds / 2, log_odds / 2], dim=1)

    @torch.no_grad()
    def learn(self, booster: HistGradientBoostingClassifier) -> None:
        """Take over the trees of a classifier of two classes, fitted to float32 ``features`` with as many trees."""
        self.prior.fill_(float(booster._baseline_prediction.item()))
        for tensor in (self.number, self.feature, self.left, self.right):
            tensor.zero_()
        for i, (tree,) in enumerate(booster._predictors):
            nodes = tree.nodes
            is_leaf = nodes["is_leaf"].astype(bool)
            n = len(nodes)
            # The largest float32 that is not above: x <= threshold stays as true as in scikit-learn's float64.
            threshold = nodes["num_threshold"].astype(np.float32)
            threshold = np.where(threshold > nodes["num_threshold"], np.nextafter(threshold, -np.inf), threshold)
            self.number[i, :n] = torch.from_numpy(np.where(is_leaf, nodes["value"], threshold).astype(np.float32))
            for name, key in (("feature", "feature_idx"), ("left", "left"), ("right", "right")):
                values = np.where(is_leaf, 0, nodes[key]).astype(np.int32)
                getattr(self, name)[i, :n] = torch.from_numpy(values)


def _grown(tree: tuple[list, ...], features: Sequence[torch.Tensor], node: int = 0) -> torch.Tensor | float:
    """What the branch from ``node`` says of each voxel."""
    feature, number, left, right = tree
    if not left[node]:  # a leaf: no node has the root below it
        return number[node]
    branches = (_grown(tree, features, side[node]) for side in (left, right))
    return torch.where(features[feature[node]] <= number[node], *branches)
