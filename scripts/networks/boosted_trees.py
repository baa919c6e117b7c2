"""Boosted trees as a network: they take each voxel's features and give its log odds of lesion.

The trees are tensors, because weights must load without running code, and scikit-learn saves trees by pickle only.
"""

from collections.abc import Sequence

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.utils import convert_to_tensor
from torch import nn

from scripts.common.errors import InputError


class BoostedTrees(nn.Module):
    """Adds what each tree says of a voxel to a prior; with weights of zeros all odds are even.

    Features are, in this order: the intensity; its averages by Gaussians; the difference of each of them from its
    mirror image, left to right about the middle of the grid; and the position, along the grid's axes in mm from the
    centre of mass of the intensities.

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
        nodes = (trees, 2 * leaves - 1)
        # The threshold of an inner node, the log odds of a leaf: a parameter, so that it counts as one.
        self.number = nn.Parameter(torch.zeros(nodes), requires_grad=False)
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("prior", torch.zeros(()))

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return the features (B, 2 + 2 scales + 3, D, H, W) of an image (B, 1, D, H, W), in float32."""
        with torch.autocast(image.device.type, enabled=False):
            image = convert_to_tensor(image).float()
            scales = [image]
            for mm in self.smoothing:
                kernel = [gaussian_1d(torch.tensor(mm / s), approx="sampled", normalize=True) for s in self.spacing]
                scales.append(separable_filtering(image, kernel, mode="replicate"))
            averages = torch.cat(scales, dim=1)
            return torch.cat([averages, averages - averages.flip(self.left_right), self._position(image)], dim=1)

    def _position(self, image: torch.Tensor) -> torch.Tensor:
        axes = [s * torch.arange(n, device=image.device) for s, n in zip(self.spacing, image.shape[2:], strict=True)]
        mm = torch.stack(torch.meshgrid(*axes, indexing="ij")).float()
        mass = image.clamp(min=0) + 1e-12  # an empty scan has its centre in the middle
        return mm - (mass * mm).sum((2, 3, 4), keepdim=True) / mass.sum((2, 3, 4), keepdim=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (B, 1, D, H, W) to logits (B, 2, D, H, W), whose difference is the log odds.

        Raises:
            InputError: it is being traced or exported.
        """
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            raise InputError("boosted trees cannot be exported; segment with configs/inference.json")
        features = self.features(image).unbind(dim=1)
        log_odds = self.prior.expand(features[0].shape)
        for tree in zip(*(part.tolist() for part in (self.feature, self.number, self.left, self.right)), strict=True):
            log_odds = log_odds + _value(tree, features)
        return torch.stack([-log_odds / 2, log_odds / 2], dim=1)


def _value(tree: tuple[list, ...], features: Sequence[torch.Tensor], node: int = 0) -> torch.Tensor | float:
    """Return what the branch from ``node`` says of each voxel."""
    feature, number, left, right = tree
    if not left[node]:  # a leaf: no node has the root below it
        return number[node]
    below = (_value(tree, features, side[node]) for side in (left, right))
    return torch.where(features[feature[node]] <= number[node], *below)
