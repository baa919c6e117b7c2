"""MONAI has no MeshNet: constant width, dilated convolutions, full resolution from the first layer to the last."""

from collections.abc import Sequence

import torch
from torch import nn

PAPER_DILATIONS = (1, 2, 4, 8, 16, 16, 8, 4, 2)


class MeshNet(nn.Module):
    """MeshNet-X (Fedorov et al., arXiv 2503.05531): 3D segmentation at 1/1000th of the usual parameters.

    Each dilated layer is Conv3d 3x3x3 (padding = dilation, with bias), BatchNorm3d, ReLU, optional Dropout3d;
    the last is a 1x1x1 Conv3d to the classes. There is no down- or up-sampling and no skip, so any grid fits.

    Args:
        in_channels: channels of the input.
        out_channels: classes.
        channels: width X of every hidden layer; 5, 16 and 26 have 5,682, 56,194 and 147,474 parameters.
        dilations: one dilated layer each.
        dropout: probability of dropping a channel after each dilated layer.

    Raises:
        ValueError: a width below 1, no dilations, or a dropout outside [0, 1).

    Example:
        >>> MeshNet(channels=5)(torch.zeros(1, 1, 32, 40, 32)).shape
        torch.Size([1, 2, 32, 40, 32])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: int = 26,
        dilations: Sequence[int] = PAPER_DILATIONS,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be one or more positive integers, got {dilations}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        widths = [in_channels] + [channels] * len(dilations)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(width_in, width_out, kernel_size=3, padding=dilation, dilation=dilation),
                nn.BatchNorm3d(width_out),
                nn.ReLU(inplace=True),
                *([nn.Dropout3d(dropout)] if dropout else []),
            )
            for width_in, width_out, dilation in zip(widths[:-1], widths[1:], dilations, strict=True)
        )
        self.classifier = nn.Conv3d(channels, out_channels, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_normal_(module.weight, gain=nn.init.calculate_gain("relu"))
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W)."""
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)
