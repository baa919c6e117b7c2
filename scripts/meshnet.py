"""MONAI has no MeshNet: constant width, dilated convolutions, full resolution from the first layer to the last."""

import math
from collections.abc import Sequence

import torch
from torch import nn

PAPER_DILATIONS = (1, 2, 4, 8, 16, 16, 8, 4, 2)


class MeshNet(nn.Module):
    """MeshNet-X (Fedorov et al., arXiv 2503.05531): 3D segmentation at 1/1000th of the usual parameters.

    Each dilated layer is Conv3d 3x3x3 (padding = dilation, with bias), BatchNorm3d, ReLU, optional Dropout3d;
    the last is a 1x1x1 Conv3d to the classes. There is no down- or up-sampling and no skip, so any grid fits.
    Forward hooks of the convolutions and normalizations inside ``layers`` are not called.

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
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W).

        A convolution dilated by d is a dense one on d^3 interleaved sub-volumes, for which libraries have fast kernels.
        It is the same up to rounding: weights, zero padding and the voxels over which BatchNorm averages do not change.
        """
        if torch.jit.is_scripting() or torch.jit.is_tracing():
            for layer in self.layers:  # what is exported stays plain: portable, and right for any grid
                x = layer(x)
            return self.classifier(x)
        return self.classifier(self._interleaved(x))

    @torch.jit.unused
    def _interleaved(self, x: torch.Tensor) -> torch.Tensor:
        """All dilated layers; ``steps`` is by how much each axis is split now, ``splits`` how it came to be."""
        if torch.compiler.is_exporting():
            for layer in self.layers:
                x = layer(x)
            return x
        n_volumes, sides, steps, splits = len(x), x.shape[2:], [1, 1, 1], []
        for layer in self.layers:
            dilation = layer[0].dilation
            wanted = [_factor(d, side) for d, side in zip(dilation, sides, strict=True)]
            while any(w % s for w, s in zip(wanted, steps, strict=True)):
                split = splits.pop()
                x, steps = _merge(x, split), [s // k for s, k in zip(steps, split, strict=True)]
            if wanted != steps:
                splits.append([w // s for w, s in zip(wanted, steps, strict=True)])
                x, steps = _split(x, splits[-1]), wanted
            left = [d // s for d, s in zip(dilation, steps, strict=True)]  # dilation that splitting has not taken away
            x = self._layer(layer, x, left, n_volumes)
        while splits:
            x = _merge(x, splits.pop())
        return x

    def _layer(self, layer: nn.Sequential, x: torch.Tensor, dilation: list[int], n_volumes: int) -> torch.Tensor:
        convolution, norm, *rest = layer
        weight, bias = convolution.weight, convolution.bias
        if self.training or torch.is_grad_enabled():
            x = norm(nn.functional.conv3d(x, weight, bias, padding=dilation, dilation=dilation))
        else:  # the normalization is a part of the convolution
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            weight = (weight * scale[:, None, None, None, None]).contiguous(memory_format=_format_of(weight))
            bias = (bias - norm.running_mean) * scale + norm.bias
            x = nn.functional.conv3d(x, weight, bias, padding=dilation, dilation=dilation)
        for module in rest:
            if isinstance(module, nn.Dropout3d):  # drops a channel of a whole volume
                kept = module(x.new_ones(n_volumes, x.shape[1], 1, 1, 1))
                x = x * kept.repeat_interleave(len(x) // n_volumes, dim=0)
            else:
                x = module(x)
        return x


def _factor(dilation: int, side: int) -> int:
    """Into how many parts a side is split: 40 voxels dilated by 16 into 8; but no part is shorter than 4."""
    common = math.gcd(dilation, side)  # on less, oneDNN's bfloat16 gradients are garbage (torch 2.13.0)
    return max(f for f in range(1, common + 1) if common % f == 0 and (side // f >= 4 or f == 1))


def _format_of(x: torch.Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format


def _split(x: torch.Tensor, k: Sequence[int]) -> torch.Tensor:
    """(B, C, D, H, W) to (B k0 k1 k2, C, D/k0, H/k1, W/k2): every k-th voxel along each axis is a volume of its own."""
    (b, c, d, h, w), like = x.shape, _format_of(x)
    x = x.reshape(b, c, d // k[0], k[0], h // k[1], k[1], w // k[2], k[2]).permute(0, 3, 5, 7, 1, 2, 4, 6)
    if like == torch.channels_last_3d:  # one copy, and it is in the order in which the convolution reads
        x = x.permute(0, 1, 2, 3, 5, 6, 7, 4).reshape(-1, d // k[0], h // k[1], w // k[2], c).permute(0, 4, 1, 2, 3)
        return x
    return x.reshape(-1, c, d // k[0], h // k[1], w // k[2])


def _merge(x: torch.Tensor, k: Sequence[int]) -> torch.Tensor:
    """The inverse of ``_split``."""
    (b, c, d, h, w), like = x.shape, _format_of(x)
    b //= math.prod(k)
    if like == torch.channels_last_3d:
        x = x.permute(0, 2, 3, 4, 1).reshape(b, *k, d, h, w, c).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return x.reshape(b, d * k[0], h * k[1], w * k[2], c).permute(0, 4, 1, 2, 3)
    x = x.reshape(b, *k, c, d, h, w).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return x.reshape(b, c, d * k[0], h * k[1], w * k[2])
