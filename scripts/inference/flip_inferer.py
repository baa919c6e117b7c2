"""MONAI averages over random augmentations only: this averages over the scan and its mirror image."""

from typing import Any

import torch
from monai.inferers import Inferer


class FlipInferer(Inferer):
    """The mean of the logits of an image and of its mirror image, mirrored back.

    Args:
        inferer: what runs the network.
        spatial_dim: the axis that is mirrored; in the RAS grid of the preprocessing 0 is left to right.
    """

    def __init__(self, inferer: Inferer, spatial_dim: int = 0) -> None:
        super().__init__()
        self.inferer, self.axis = inferer, 2 + spatial_dim

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits (B, C, D, H, W) of ``inputs`` (B, C, D, H, W)."""
        mirrored = self.inferer(inputs.flip(self.axis), network, *args, **kwargs)
        return (self.inferer(inputs, network, *args, **kwargs) + mirrored.flip(self.axis)) / 2
