"""A convolution dilated by d is a dense one on d^3 interleaved sub-volumes, for which libraries have fast kernels.

It is the same up to rounding: weights, zero padding and the voxels over which normalizations average do not change.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise, product

import torch
from monai.data import MetaTensor
from torch import nn
from torch.nn.functional import conv3d, pad
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

# Inference takes larger volumes one interleaved sub-volume after another. A part and its result then fit into a CPU's
# cache, and memory holds an eighth of a layer at a time. Elsewhere parts only save memory, and cost calls.
VOXELS_AT_ONCE = 2**19
VOXELS_AT_ONCE_ON_GPU = 2**25


@dataclass(frozen=True)
class Convolve:
    """Activate the layer before, convolve by what splitting has left of the dilation, normalize."""

    layer: int  # the classifier is the one after the last
    dilation: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """(B, C, D, H, W) to (B k0 k1 k2, C, D/k0, H/k1, W/k2): every k-th voxel along each axis is a volume of its own."""

    k: tuple[int, ...]


@dataclass(frozen=True)
class Merge:
    """The inverse of ``Split``; the two are nested in a plan like brackets."""

    k: tuple[int, ...]


def plan(dilations: Sequence[Sequence[int]], sides: Sequence[int]) -> list[Convolve | Split | Merge]:
    """The steps of layers with these dilations (each along three axes) on a volume with these sides, in voxels."""
    steps = []
    factors = (1, 1, 1)
    splits = []
    for i, dilation in enumerate(dilations):
        wanted = tuple(_factor(d, side) for d, side in zip(dilation, sides, strict=True))
        while any(w % f for w, f in zip(wanted, factors, strict=True)):
            steps.append(Merge(splits.pop()))
            factors = tuple(f // k for f, k in zip(factors, steps[-1].k, strict=True))
        if wanted != factors:
            splits.append(tuple(w // f for w, f in zip(wanted, factors, strict=True)))
            steps.append(Split(splits[-1]))
            factors = wanted
        left = tuple(d // f for d, f in zip(dilation, factors, strict=True))
        steps.append(Convolve(i, dilation=left, padding=left))
    return [*steps, Convolve(len(dilations), dilation=(1, 1, 1), padding=(0, 0, 0)), *map(Merge, reversed(splits))]


def _factor(dilation: int, side: int) -> int:
    """Into how many parts a side is split: 40 voxels dilated by 16 into 8; but no part is shorter than 4."""
    common = math.gcd(dilation, side)  # on less, oneDNN's bfloat16 gradients are garbage (torch 2.13.0)
    return max(f for f in range(1, common + 1) if common % f == 0 and (side // f >= 4 or f == 1))


def forward(network: nn.Module, x: torch.Tensor, run: Callable | None = None) -> torch.Tensor:
    """Map an image (B, in_channels, D, H, W) to a ``MeshNet``'s class logits (B, out_channels, D, H, W).

    In inference the steps are run by ``run``, by default ``infer``. A ``MetaTensor`` stays one, but its metadata goes
    past the steps, each of which would sort it out for hundreds of sub-volumes.
    """
    if isinstance(x, MetaTensor):
        return MetaTensor(forward(network, x.as_tensor(), run)).copy_meta_from(x, copy_attr=False)
    steps = plan([layer[0].dilation for layer in network.layers], x.shape[2:])
    if network.training or torch.is_grad_enabled() or looks_at_volume(network):
        return _train(network, x, steps)
    return (run or infer)(x, steps, fold(network, x.device.type))


def looks_at_volume(network: nn.Module) -> bool:
    """Whether a ``MeshNet`` normalizes by what is in the volume, so that an answer to a part of it is another one.

    Once it is ``adapted_to`` a volume, a ``norm_adaptation`` is none.
    """
    norms = [norm for _, norm, *_ in network.layers]
    return network.norm_adaptation > 0 or any(getattr(norm, "running_mean", norm) is None for norm in norms)


def _train(network: nn.Module, x: torch.Tensor, steps: list) -> torch.Tensor:
    """Run ``steps`` in segments of ``checkpoint_layers`` layers whose inside is not kept for the backward pass."""
    n_layers = network.checkpoint_layers or len(network.layers)
    n_volumes = len(x)
    spare = {"context_fn": lambda: (nullcontext(), spare_statistics(network))}
    spare = {} if torch.compiler.is_compiling() else spare  # which takes no contexts, and moves statistics only once
    layers = [i for i, step in enumerate(steps) if isinstance(step, Convolve)]
    *starts, last = [0, *layers[n_layers:-1:n_layers]]
    for start, stop in pairwise([*starts, last]):
        x = checkpoint(_segment, network, x, steps[start:stop], n_volumes, use_reentrant=False, **spare)
    return _segment(network, x, steps[last:], n_volumes)  # it is needed again at once


def _segment(network: nn.Module, x: torch.Tensor, steps: list, n_volumes: int) -> torch.Tensor:
    layers = [*network.layers, (network.classifier, nn.Identity())]
    for step in steps:
        if not isinstance(step, Convolve):
            x = _rearrange(x, step)
            continue
        if step.layer:  # activated after a split, so that one tensor is kept for the backward pass, not two
            _, _, act, *dropouts = layers[step.layer - 1]
            x = act(x)
            for dropout in dropouts:  # drops a channel of a whole volume
                kept = dropout(x.new_ones(n_volumes, x.shape[1], 1, 1, 1))
                x = x * kept.repeat_interleave(len(x) // n_volumes, dim=0)
        convolution, norm, *_ = layers[step.layer]
        if convolution is network.classifier:
            x = convolution(x)  # so that its hooks are called
            continue
        x = conv3d(x, convolution.weight, convolution.bias, padding=step.padding, dilation=step.dilation)
        if isinstance(norm, nn.InstanceNorm3d):  # averages over a whole volume: its sub-volumes one above the other
            whole = x.unflatten(0, (n_volumes, -1)).transpose(1, 2)
            parts = norm(whole.flatten(2, 3))
            if parts.requires_grad and not torch.compiler.is_compiling():  # torch 2.13.0's gradient for one volume is
                parts.register_hook(torch.Tensor.contiguous)  # garbage on CPUs, if what comes back is channels last
            parts = parts.unflatten(2, whole.shape[2:4]).transpose(1, 2).flatten(0, 1)
            x = parts.contiguous(memory_format=_format_of(x))
        else:
            x = norm(x)
    return x


@contextmanager
def spare_statistics(network: nn.Module) -> Iterator[None]:
    """Let a network compute something a second time without moving its running statistics again: it moves copies."""
    kept = [(module, *named) for module in network.modules() for named in module.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def as_classified(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Voxels (B, C, D, H, W) in the arrangement in which a ``MeshNet`` in training classifies them."""
    steps = plan([layer[0].dilation for layer in network.layers], x.shape[2:])
    for step in steps[: steps.index(next(reversed([step for step in steps if isinstance(step, Convolve)])))]:
        x = x if isinstance(step, Convolve) else _rearrange(x, step)
    return x


@dataclass
class Folded:
    """A convolution and the normalization after it as one, in the type to compute in, and the activation after them."""

    weight: torch.Tensor
    bias: torch.Tensor
    act: nn.Module

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """In place where the activation can."""
        return self.act(x)

    def correct_border(self, x: torch.Tensor, dilation: tuple, offset: tuple = (0,) * 3, stride: tuple = (1,) * 3):
        """Change the convolution's result ``x`` in place where its zero padding is not what lies beyond the volume.

        Its voxels are those at ``offset``, ``offset + stride``, ... of a volume padded by ``dilation``. Here zeros are
        what is meant; see ``scripts.execution.air``.
        """


def fold(network: nn.Module, device_type: str) -> list[Folded]:
    """The layers and the classifier of a ``MeshNet`` in evaluation mode, in the type that autocast computes in."""
    autocast = torch.is_autocast_enabled(device_type)
    dtype = torch.get_autocast_dtype(device_type) if autocast else network.classifier.weight.dtype
    folded = []
    for convolution, norm, act, *_ in [*network.layers, (network.classifier, nn.Identity(), nn.Identity())]:
        weight, bias = convolution.weight, convolution.bias
        if not isinstance(norm, nn.Identity):
            statistics = norm.running_mean, norm.running_var, norm.eps
            weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, norm.weight, norm.bias)
        weight = weight.to(dtype).contiguous(memory_format=_format_of(convolution.weight))
        act = copy.copy(act)
        act.inplace = True  # of those that have it; others take no notice
        folded.append(Folded(weight, bias.to(dtype), act))
    return folded


def infer(x: torch.Tensor, steps: list, folded: list[Folded]) -> torch.Tensor:
    """Run ``steps``; what lies between a split and its merge is done on one part of a large volume after another."""
    while steps:
        step, *steps = steps
        most = VOXELS_AT_ONCE if x.device.type == "cpu" else VOXELS_AT_ONCE_ON_GPU
        is_large = len(x) * x[0, 0].numel() > most and not torch.compiler.is_compiling()
        if isinstance(step, Split) and is_large:
            x, steps = _infer_parts(x, [step, *steps], folded, widen=None)
        elif isinstance(step, Split | Merge):
            x = _rearrange(x, step)
        elif is_large and x.shape[1] < len(folded[step.layer].weight) and steps and isinstance(steps[0], Split):
            x, steps = _infer_parts(x, steps, folded, widen=step)
        else:
            layer = folded[step.layer]
            x = folded[step.layer - 1].activate(x) if step.layer else x
            x = conv3d(x.to(layer.weight.dtype), layer.weight, layer.bias, padding=step.padding, dilation=step.dilation)
            layer.correct_border(x, step.dilation)
    return x


def _infer_parts(x: torch.Tensor, steps: list, folded: list[Folded], widen: Convolve | None) -> tuple:
    """Run ``steps``, a split first, up to its merge, and ``widen`` before it; return the result and what is left."""
    depth = list(accumulate(isinstance(step, Split) - isinstance(step, Merge) for step in steps))
    end = depth.index(0)
    k = steps[0].k
    whole = None
    shape = x.shape[2:]
    if widen:
        first = folded[0]
        padding = [d for d in reversed(widen.padding) for _ in range(2)]
        x = pad(x.to(first.weight.dtype), padding)
    for i, j, m in product(*map(range, k)):
        voxels = (..., slice(i, None, k[0]), slice(j, None, k[1]), slice(m, None, k[2]))
        if widen:
            part = conv3d(x[..., i:, j:, m:], first.weight, first.bias, stride=k, dilation=widen.dilation)
            first.correct_border(part, widen.dilation, (i, j, m), k)
        else:
            part = x[voxels].contiguous(memory_format=_format_of(x))
        part = infer(part, steps[1:end], folded)
        if whole is None:
            like = {"dtype": part.dtype, "device": part.device, "memory_format": _format_of(part)}
            whole = torch.empty((len(x), part.shape[1], *shape), **like)
        whole[voxels] = part
    return whole, steps[end + 1 :]


def _rearrange(x: torch.Tensor, step: Split | Merge) -> torch.Tensor:
    """In one copy, in the order in which convolutions read: (B, C, D, H, W, 1), or channels last (B, 1, D, H, W, C)."""
    last = _format_of(x) == torch.channels_last_3d
    x = x.unsqueeze(-1).transpose(1, -1) if last else x.unsqueeze(-1)
    (_, c, d, h, w, e), (i, j, k) = x.shape, step.k
    if isinstance(step, Split):
        x = x.reshape(-1, c, d // i, i, h // j, j, w // k, k, e).permute(0, 3, 5, 7, 1, 2, 4, 6, 8).flatten(0, 3)
    else:
        x = x.unflatten(0, (-1, i, j, k)).permute(0, 4, 5, 1, 6, 2, 7, 3, 8).reshape(-1, c, d * i, h * j, w * k, e)
    return (x.transpose(1, -1) if last else x).squeeze(-1)


def _format_of(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last_3d if x.is_contiguous(memory_format=torch.channels_last_3d) else torch.contiguous_format
