"""MeshNet: dilated convolutions of constant width, at full resolution from the first layer to the last."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from monai.networks.layers import get_act_layer, get_norm_layer
from monai.utils import convert_to_tensor
from torch import nn
from torch.nn.functional import conv3d

from scripts.networks import interleaved
from scripts.networks.adaptive_norm import AdaptiveBatchNorm3d, FixedNorm, norm_shift

PAPER_DILATIONS = (1, 2, 4, 8, 16, 16, 8, 4, 2)


class MeshNet(nn.Module):
    """MeshNet-X (Fedorov et al., arXiv 2503.05531): 3D segmentation at 1/1000th of the usual parameters.

    Each dilated layer is Conv3d 3x3x3 (padding = dilation, with bias), normalization, activation, optional Dropout3d;
    the last is a 1x1x1 Conv3d to the classes. There is no down- or up-sampling and no skip, so any grid fits.
    Forward hooks inside ``layers`` are not called.

    Args:
        in_channels: channels of the input.
        out_channels: classes.
        channels: width X of every hidden layer; 5, 16 and 26 have 5,682, 56,194 and 147,474 parameters.
        dilations: one dilated layer each.
        dropout: probability of dropping a channel after each dilated layer.
        checkpoint_layers: in training, keep the activations of every ``checkpoint_layers``-th dilated layer only and
            compute the others again in the backward pass (layer checkpointing); 0 keeps all.
        norm: in MONAI's words: "batch", "instance", ("instance", {"affine": True}); None for no normalization.
        act: in MONAI's words: "relu", "elu", ("leakyrelu", {"negative_slope": 0.1}), ...
        norm_eval: in training, too, BatchNorm normalizes by its running statistics, and they do not move: for
            fine-tuning, where one scan's own statistics are not those that inference will use.
        norm_adaptation: in evaluation, BatchNorm normalizes by a mixture with this share of the image's own statistics.
        frozen_layers: so many of the first dilated layers are not trained: no gradient, and as in evaluation.
        norm_shift_limit: only for images whose ``norm_shift`` is beyond it, in nats; None for all.

    Raises:
        ValueError: no such network; it names the argument, its value and what is expected.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: int = 26,
        dilations: Sequence[int] = PAPER_DILATIONS,
        dropout: float = 0.0,
        checkpoint_layers: int = 0,
        norm: str | tuple | None = "batch",
        act: str | tuple = "relu",
        norm_eval: bool = False,
        norm_adaptation: float = 0.0,
        norm_shift_limit: float | None = None,
        frozen_layers: int = 0,
    ) -> None:
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels, "channels": channels}
        _check_layers(counts, dilations, dropout, checkpoint_layers, frozen_layers)
        _check_adaptation(norm, norm_adaptation, norm_shift_limit)
        self.checkpoint_layers = checkpoint_layers
        self.norm_eval = norm_eval
        self.frozen_layers = frozen_layers
        self.norm_adaptation, self.norm_shift_limit = norm_adaptation, norm_shift_limit
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(channels if i else in_channels, channels, kernel_size=3, padding=dilation, dilation=dilation),
                AdaptiveBatchNorm3d(channels, norm_adaptation if norm_shift_limit is None else 0.0)
                if norm_adaptation
                else _checked_layer("norm", norm, lambda: get_norm_layer(norm or "", 3, channels), channels),
                _checked_layer("act", act, lambda: get_act_layer(act), channels),
                *([nn.Dropout3d(dropout)] if dropout else []),
            )
            for i, dilation in enumerate(dilations)
        )
        self.classifier = nn.Conv3d(channels, out_channels, kernel_size=1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.xavier_normal_(module.weight, gain=nn.init.calculate_gain("relu"))
                nn.init.zeros_(module.bias)
        self.layers[:frozen_layers].requires_grad_(False)

    def train(self, mode: bool = True) -> "MeshNet":
        """Training mode but for frozen layers and, with ``norm_eval``, normalizations; evaluation if not ``mode``."""
        super().train(mode)
        self.layers[: self.frozen_layers].eval()
        for _, norm, *_ in self.layers:
            norm.train(norm.training and not self.norm_eval)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W)."""
        if torch.jit.is_scripting():  # what is exported stays plain: portable, and right for any grid
            return self.plain(x)
        else:  # which TorchScript leaves alone
            exported = torch.jit.is_tracing() or torch.compiler.is_exporting()
            return self.plain(x) if exported else interleaved.forward(self.adapted_to(x), x)

    @torch.jit.unused
    def adaptation_to(self, x: torch.Tensor) -> float:
        """The share of its own statistics that an image (B, in_channels, D, H, W) is normalized by in evaluation."""
        limit, (convolution, norm, *_) = self.norm_shift_limit, self.layers[0]
        is_beyond = limit is None or bool(norm_shift(convolution, norm, x) > limit)
        return self.norm_adaptation if is_beyond else 0.0

    @torch.jit.unused
    @torch.no_grad()
    def adapted_to(self, x: torch.Tensor, share: float | None = None) -> "MeshNet":
        """What evaluates ``x``: a network with this one's parameters that normalizes all images alike.

        ``share`` is what ``adaptation_to`` says of another view of ``x``; of ``x`` itself by default.
        """
        if self.training or not self.norm_adaptation:
            return self
        x = convert_to_tensor(x, track_meta=False)
        share = self.adaptation_to(x) if share is None else share
        norms = self._norms_fixed_to(x) if share else [norm for _, norm, *_ in self.layers]
        network = self._with(nn.Sequential(one[0], n, *one[2:]) for one, n in zip(self.layers, norms, strict=True))
        network.norm_adaptation, network.norm_shift_limit = 0.0, None
        return network.eval()

    def _norms_fixed_to(self, x: torch.Tensor) -> list[nn.BatchNorm3d]:
        """Compute every second voxel along each axis: layers of even dilations see no other, an eighth of the work."""
        norms = [FixedNorm(norm, self.norm_adaptation) for _, norm, *_ in self.layers]
        (first, _, *others), *rest = self.layers
        if any(side % 2 for layer in rest for side in layer[0].dilation):
            for (convolution, _, *others), norm in zip(self.layers, norms, strict=True):
                x = convolution(x)
                norm(x[:, :, ::2, ::2, ::2])
                x = nn.Sequential(norm.fixed, *others)(x)
        else:
            x = conv3d(x, first.weight, first.bias, 2, first.padding, first.dilation)
            x = nn.Sequential(norms[0], *others)(x)
            halved = [copy.copy(convolution) for convolution, *_ in rest]
            for convolution in halved:
                convolution.dilation = tuple(side // 2 for side in convolution.dilation)
            parts = zip(halved, norms[1:], rest, strict=True)
            if rest:
                interleaved.forward(self._with(nn.Sequential(c, norm, *layer[2:]) for c, norm, layer in parts), x)
        return [norm.fixed for norm in norms]

    def _with(self, layers: Iterable[nn.Module]) -> "MeshNet":
        """A copy with other layers; all else is shared."""
        network = copy.copy(self)
        network._modules = {**self._modules, "layers": nn.ModuleList(layers)}
        return network

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """What ``forward`` computes, layer after layer, its convolutions dilated; it knows no ``norm_shift_limit``."""
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


class ByScan(nn.Module):
    """A ``network`` with a ``norm_shift_limit`` as a graph of its own can compute it: the limit decides within it."""

    def __init__(self, network: MeshNet) -> None:
        super().__init__()
        self.network = network
        self.limit = network.norm_shift_limit
        self.share = network.norm_adaptation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (1, in_channels, D, H, W) to class logits (1, out_channels, D, H, W)."""
        convolution, norm, *_ = self.network.layers[0]
        share = self.share * (norm_shift(convolution, norm, x) > self.limit).float()
        for convolution, norm, *others in self.network.layers:
            x = norm.mixed(convolution(x), share)
            for layer in others:
                x = layer(x)
        return self.network.classifier(x)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network within ``torch.compile``, DistributedDataParallel or a moving average."""
    for wrapper in ("_orig_mod", "module"):
        network = getattr(network, wrapper, network)
    return network


def is_meshnet(network: nn.Module) -> bool:
    """Whether it is a MeshNet, wrapped or not."""
    return isinstance(unwrapped(network), MeshNet)


def _check_layers(
    counts: dict[str, int], dilations: Sequence[int], dropout: float, checkpoint_layers: int, frozen_layers: int
) -> None:
    for name, value in {**counts, "checkpoint_layers": checkpoint_layers}.items():
        if type(value) is not int or value < (name in counts):
            raise ValueError(f"{name} must be at least {int(name in counts)}, got {value!r} (expected an integer)")
    if not isinstance(dilations, Sequence) or not dilations or any(type(d) is not int or d < 1 for d in dilations):
        raise ValueError(f"dilations must be one or more positive integers, got {dilations!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
    if type(frozen_layers) is not int or not 0 <= frozen_layers <= len(dilations):
        raise ValueError(f"frozen_layers must be an integer from 0 to {len(dilations)}, got {frozen_layers!r}")


def _check_adaptation(norm: str | tuple | None, share: float, limit: float | None) -> None:
    if type(share) not in (int, float) or not 0 <= share <= 1:
        raise ValueError(f"norm_adaptation must be in [0, 1], got {share!r}")
    if share and norm != "batch":
        raise ValueError(f'norm_adaptation is for norm "batch", got {norm!r}')
    if limit is not None and not (type(limit) in (int, float) and 0 <= limit < math.inf):
        raise ValueError(f"norm_shift_limit must be a number of at least 0, got {limit!r}")
    if limit is not None and not share:
        raise ValueError("norm_shift_limit is for a norm_adaptation above 0")


def _checked_layer(name: str, value: object, make: Callable[[], nn.Module], channels: int) -> nn.Module:
    """A layer that may see the voxels in any order, or a ValueError."""
    try:
        module = make()
        x = torch.zeros(1, channels, 2, 2, 2)
        if name == "norm" and not isinstance(module, nn.BatchNorm3d | nn.InstanceNorm3d | nn.Identity):
            raise ValueError('expected "batch", "instance" or null')
        if name == "act" and module(x).shape != x.shape:
            raise ValueError("expected one that keeps the shape")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a layer in MONAI's words, got {value!r}: {error}") from error
    return module
