"""MONAI has no MeshNet: constant width, dilated convolutions, full resolution from the first layer to the last."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import product

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

PAPER_DILATIONS = (1, 2, 4, 8, 16, 16, 8, 4, 2)
# Inference takes larger volumes one interleaved sub-volume after another. A part and its result then fit into a CPU's
# cache, and memory holds an eighth of a layer at a time.
VOXELS_AT_ONCE = 2**19


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
        checkpoint_layers: in training, keep the activations of every ``checkpoint_layers``-th dilated layer only and
            compute the others again in the backward pass (layer checkpointing); 0 keeps all.

    Raises:
        ValueError: a width below 1, no dilations, a dropout outside [0, 1), or a negative ``checkpoint_layers``.

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
        checkpoint_layers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be one or more positive integers, got {dilations}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        if checkpoint_layers < 0:
            raise ValueError(f"checkpoint_layers must be 0 or more, got {checkpoint_layers}")
        self.checkpoint_layers = checkpoint_layers
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
        return self._interleaved(x)

    @torch.jit.unused
    def _interleaved(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            for layer in self.layers:
                x = layer(x)
            return self.classifier(x)
        plan = _plan([layer[0].dilation for layer in self.layers], x.shape[2:])
        if self.training or torch.is_grad_enabled():
            return self.classifier(self._train(x, plan))
        return self._infer(x, [*plan, ("classify", None)], self._folded(x))

    def _train(self, x: torch.Tensor, plan: list[tuple]) -> torch.Tensor:
        """Run ``plan``, in segments of ``checkpoint_layers`` layers whose inside is not kept for the backward pass."""
        n_volumes, n_layers = len(x), self.checkpoint_layers or len(self.layers)
        segments, n_started = [], 0
        for step in plan:
            if step[0] == "convolve":
                n_started += 1
            if not segments or (step[0] == "convolve" and (n_started - 1) % n_layers == 0):
                segments.append([])
            segments[-1].append(step)
        for segment in segments:
            if segment is segments[-1] or not torch.is_grad_enabled():  # the last is needed again at once
                x = self._segment(x, segment, n_volumes)
            else:
                contexts = {"context_fn": lambda: (nullcontext(), self._spare_statistics())}
                if torch.compiler.is_compiling():  # it takes no contexts, and by itself moves statistics once
                    contexts = {}
                x = checkpoint(self._segment, x, segment, n_volumes, use_reentrant=False, **contexts)
        return x

    def _segment(self, x: torch.Tensor, segment: list[tuple], n_volumes: int) -> torch.Tensor:
        for what, value in segment:
            if what == "convolve":
                (convolution, norm, *_), dilation = self.layers[value[0]], value[1]
                x = nn.functional.conv3d(x, convolution.weight, convolution.bias, padding=dilation, dilation=dilation)
                x = norm(x)
            elif what == "activate":  # after a split, so that one tensor is kept for the backward pass, not two
                x = nn.functional.relu(x)  # in place, on a view, its gradient would be in another memory format
                for dropout in self.layers[value][3:]:  # drops a channel of a whole volume
                    kept = dropout(x.new_ones(n_volumes, x.shape[1], 1, 1, 1))
                    x = x * kept.repeat_interleave(len(x) // n_volumes, dim=0)
            else:
                x = _split(x, value) if what == "split" else _merge(x, value)
        return x

    @contextmanager
    def _spare_statistics(self) -> Iterator[None]:
        """Computing a layer again must not move its running statistics again: it moves copies."""
        kept = [(norm, name, buffer) for _, norm, *_ in self.layers for name, buffer in norm.named_buffers()]
        for norm, name, buffer in kept:
            setattr(norm, name, buffer.clone())
        try:
            yield
        finally:
            for norm, name, buffer in kept:
                setattr(norm, name, buffer)

    def _folded(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weight and bias of each convolution and the normalization after it as one, in the type to compute in."""
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else self.classifier.weight.dtype
        folded = []
        for convolution, norm, *_ in self.layers:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            weight = convolution.weight * scale[:, None, None, None, None]
            weight = weight.to(dtype).contiguous(memory_format=_format_of(convolution.weight))
            folded.append((weight, ((convolution.bias - norm.running_mean) * scale + norm.bias).to(dtype)))
        return folded

    def _infer(self, x: torch.Tensor, plan: list[tuple], folded: list[tuple]) -> torch.Tensor:
        """Run ``plan``; what happens between a split and its merge happens to one sub-volume after another."""
        while plan:
            (what, value), *plan = plan
            if what == "convolve":
                weight, bias = folded[value[0]]
                x = x.to(weight.dtype)
                if x.shape[1] < len(weight) and _is_large(x) and plan[0][0] == "split":
                    x, plan = self._infer_parts(x, plan[0][1], plan[1:], folded, convolve=value)
                else:
                    x = nn.functional.conv3d(x, weight, bias, padding=value[1], dilation=value[1])
            elif what == "split" and _is_large(x):
                x, plan = self._infer_parts(x, value, plan, folded)
            elif what == "activate":
                x = x.relu_()
            elif what == "classify":
                x = self.classifier(x)
            else:
                x = _split(x, value) if what == "split" else _merge(x, value)
        return x

    def _infer_parts(
        self, x: torch.Tensor, k: Sequence[int], plan: list[tuple], folded: list[tuple], convolve: tuple | None = None
    ) -> tuple[torch.Tensor, list[tuple]]:
        """Split ``x``, run ``plan`` up to the merge on each part; return the merged result and the rest of ``plan``.

        ``convolve`` is a layer before the split that widens ``x``: it is computed a part at a time, too.
        """
        inside, rest = _until_merged(plan)
        if all(what in ("activate", "classify") for what, _ in rest):  # they look at one voxel: better before the merge
            inside, rest = inside + rest, []
        whole, shape = None, x.shape[2:]
        if convolve:
            (weight, bias), dilation = folded[convolve[0]], convolve[1]
            x = nn.functional.pad(x, [d for d in reversed(dilation) for _ in range(2)])
        for start in product(*map(range, k)):
            voxels = (..., *(slice(first, None, step) for first, step in zip(start, k, strict=True)))
            if convolve:
                from_start = x[(..., *(slice(first, None) for first in start))]
                part = nn.functional.conv3d(from_start, weight, bias, stride=k, dilation=dilation)
            else:
                part = x[voxels].contiguous(memory_format=_format_of(x))
            part = self._infer(part, inside, folded)
            if whole is None:
                like = {"dtype": part.dtype, "device": part.device, "memory_format": _format_of(part)}
                whole = torch.empty((len(x), part.shape[1], *shape), **like)
            whole[voxels] = part
        return whole, rest


def _plan(dilations: Sequence[Sequence[int]], sides: Sequence[int]) -> list[tuple]:
    """The steps of the dilated layers on a volume with these sides, splits and merges nested like brackets.

    A step is ("convolve", (layer, dilation that splitting has not taken away)), ("activate", layer), or ("split", k)
    and ("merge", k) with a factor for each axis.
    """
    plan, steps, splits = [], [1, 1, 1], []
    for i, dilation in enumerate(dilations):
        wanted = [_factor(d, side) for d, side in zip(dilation, sides, strict=True)]
        change = []
        while any(w % s for w, s in zip(wanted, steps, strict=True)):
            k = splits.pop()
            change.append(("merge", k))
            steps = [s // factor for s, factor in zip(steps, k, strict=True)]
        if wanted != steps:
            splits.append([w // s for w, s in zip(wanted, steps, strict=True)])
            change.append(("split", splits[-1]))
            steps = wanted
        left = [d // s for d, s in zip(dilation, steps, strict=True)]
        plan += [*change, *([("activate", i - 1)] if i else []), ("convolve", (i, left))]
    return [*plan, *(("merge", k) for k in reversed(splits)), ("activate", len(dilations) - 1)]


def _until_merged(plan: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """What comes before the merge that ends the split before ``plan``, and what comes after it."""
    depth, i = 1, 0
    while depth:
        depth += (plan[i][0] == "split") - (plan[i][0] == "merge")
        i += 1
    return plan[: i - 1], plan[i:]


def _is_large(x: torch.Tensor) -> bool:
    return len(x) * x[0, 0].numel() > VOXELS_AT_ONCE and not torch.compiler.is_compiling()


def _factor(dilation: int, side: int) -> int:
    """Into how many parts a side is split: 40 voxels dilated by 16 into 8; but no part is shorter than 4."""
    common = math.gcd(dilation, side)  # on less, oneDNN's bfloat16 gradients are garbage (torch 2.13.0)
    return max(f for f in range(1, common + 1) if common % f == 0 and (side // f >= 4 or f == 1))


def _format_of(x: torch.Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format


def _split(x: torch.Tensor, k: Sequence[int]) -> torch.Tensor:
    """(B, C, D, H, W) to (B k0 k1 k2, C, D/k0, H/k1, W/k2): every k-th voxel along each axis is a volume of its own."""
    b, c, d, h, w = x.shape
    if _format_of(x) == torch.channels_last_3d:  # one copy, in the order in which convolutions read, gradients too
        x = x.permute(0, 2, 3, 4, 1).reshape(b, d // k[0], k[0], h // k[1], k[1], w // k[2], k[2], c)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, d // k[0], h // k[1], w // k[2], c)
        return x.permute(0, 4, 1, 2, 3)
    x = x.reshape(b, c, d // k[0], k[0], h // k[1], k[1], w // k[2], k[2]).permute(0, 3, 5, 7, 1, 2, 4, 6)
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
