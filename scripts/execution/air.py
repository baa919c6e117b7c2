"""Compute a MeshNet on a box of a volume as if the air around the box were there.

On constant air each layer of a network answers with one vector, so what the next layer sees beyond the box is known.
All is computed as the difference from that vector, for which zero padding is the right one. Where the box ends with the
volume, the network's own zero padding is put back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import torch
from torch import nn

from scripts.networks.interleaved import Folded, fold, infer, looks_at_volume, plan
from scripts.networks.meshnet import MeshNet

Ends = tuple[tuple[bool, bool], ...]  # for each axis: whether the volume begins and ends with the box


@dataclass
class FoldedInAir(Folded):
    """A layer for differences from air; its bias is what air gives, less its answer to air where a ReLU follows."""

    air: torch.Tensor  # (C, 1, 1, 1): its answer to air, activated
    taps: torch.Tensor  # (C, 3, 3, 3): what each of the kernel's voxels gives on air
    ends: Ends

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """The activation's difference from air."""
        is_relu = isinstance(self.act, nn.ReLU)  # max(x, 0) - air is max(x - air, -air)
        x = x if is_relu else self.act(x)
        flat, air = x, self.air
        if x.is_contiguous(memory_format=torch.channels_last_3d):  # a row of many voxels is one loop, not one a voxel
            voxels = math.gcd(x.numel() // len(air), 1024)
            flat = x.movedim(1, -1).view(-1, voxels * len(air))
            air = air.flatten().repeat(voxels)
        _ = flat.clamp_(min=-air) if is_relu else flat.sub_(air)
        return x

    def correct_border(self, x: torch.Tensor, dilation: tuple, offset: tuple = (0,) * 3, stride: tuple = (1,) * 3):
        """Take off what air would give from beyond the volume's ends."""
        axes = [_segments(*args) for args in zip(x.shape[2:], dilation, self.ends, offset, stride, strict=True)]
        for (i, a), (j, b), (k, c) in product(*axes) if any(map(any, self.ends)) else ():
            beyond = ~(a[:, None, None] & b[:, None] & c)
            if beyond.any():
                x[:, :, i, j, k] -= self.taps[:, beyond].sum(1)[:, None, None, None].to(x)


def can_skip_air(network: nn.Module) -> bool:
    """Whether its answer to a voxel depends on what lies around it only."""
    return isinstance(network, MeshNet) and not looks_at_volume(network)


def reach(dilations: Sequence[int]) -> int:
    """How many voxels of air around a head must be computed for an exact answer within the head.

    After some layers the head is seen as far as their dilations add up to; the answer depends on what lies as far as
    those of the layers that follow.
    """
    seen = list(accumulate(dilations))
    return max(min(far, seen[-1] - far) for far in seen)


def infer_in_air(
    network: MeshNet, x: torch.Tensor, box: tuple[slice, slice, slice], air: torch.Tensor, run: Callable = infer
) -> torch.Tensor:
    """Logits (B, out_channels, D, H, W) of an image (B, in_channels, D, H, W): computed in ``box``, beyond it air's.

    If all beyond ``box`` is air, without an end, they are exact, up to rounding, in what lies at least ``reach`` within
    the box.

    Args:
        network: one that ``can_skip_air``, in evaluation mode.
        x: the image.
        box: what is computed, with a start and a stop for each axis.
        air: (in_channels,) of the image.
        run: runs the steps, as ``interleaved.infer``.
    """
    ends = tuple((side.start == 0, side.stop == n) for side, n in zip(box, x.shape[2:], strict=True))
    layers = _in_air(fold(network, x.device.type), air, ends)
    steps = plan([layer[0].dilation for layer in network.layers], [side.stop - side.start for side in box])
    whole = layers[-1].air[None].expand(len(x), -1, *x.shape[2:]).contiguous()
    whole[(..., *box)] = run(x[(..., *box)] - air[:, None, None, None], steps, layers).to(whole)
    return whole


def _in_air(folded: list[Folded], air: torch.Tensor, ends: Ends) -> list[FoldedInAir]:
    """The layers for differences from ``air``, (in_channels,); the last one's ``air`` is its logits."""
    layers = []
    air = air.double()
    for layer in folded:
        taps = torch.einsum("oidhw,i->odhw", layer.weight.double(), air.flatten().double())
        before = (layer.bias.double() + taps.sum((1, 2, 3))).to(layer.bias.dtype)[:, None, None, None]
        air = layer.act(before[None].clone())[0]
        bias = before - air if isinstance(layer.act, nn.ReLU) else before
        layers.append(FoldedInAir(layer.weight, bias.flatten(), layer.act, air, taps, ends))
    layers[-1].ends = ((False, False),) * 3  # the classifier sees no neighbours
    return layers


def _segments(n: int, dilation: int, ends: tuple, offset: int, stride: int) -> list[tuple[slice, torch.Tensor]]:
    """Along an axis of ``n`` voxels the parts for which the same of the kernel's three voxels are in the volume."""
    low = min(n, max(0, -((offset - dilation) // stride))) if ends[0] else 0
    high = min(n, max(0, n - (dilation + offset) // stride)) if ends[1] else n
    cuts = sorted({0, low, high, n})
    return [(slice(a, b), torch.tensor([a >= low, True, b <= high])) for a, b in pairwise(cuts)]
