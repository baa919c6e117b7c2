"""MONAI averages over random augmentations only: this averages over the scan and its mirror image."""

from typing import Any

import torch
from monai.inferers import Inferer


class FlipInferer(Inferer):
    """The mean of the logits of an image (B, C, D, H, W), D from left to right, and of its mirror image, put back."""

    def __init__(self, inferer: Inferer) -> None:
        super().__init__()
        self.inferer = inferer

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Logits (B, C, D, H, W)."""
        mirrored = self.inferer(inputs.flip(2), network, *args, **kwargs).flip(2)
        return (self.inferer(inputs, network, *args, **kwargs) + mirrored) / 2
