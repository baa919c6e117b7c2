"""Normalize by a mixture of training's statistics and a volume's own."""

import torch
from torch import nn
from torch.nn.functional import conv3d


class AdaptiveBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d that in evaluation normalizes by ``1 - adaptation`` of its running mean and variance and
    ``adaptation`` of those of its input, so that a scan unlike the training's (stripped of its skull, from another
    scanner) changes less of what a network sees: Schneider et al., Improving robustness against common corruptions by
    covariate shift adaptation (arXiv 2006.16971).

    Inputs (B, C, D, H, W); what is in a batch shares its statistics. They are those of every second voxel along each
    axis, which a network can compute by themselves: see ``MeshNet.adapted_to``.
    """

    def __init__(self, num_features: int, adaptation: float) -> None:
        super().__init__(num_features)
        self.adaptation = adaptation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        if self.training:
            return self._train(input)
        if self.adaptation > 0:
            return self.mixed(input, self.adaptation)
        return nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def mixed(self, input: torch.Tensor, adaptation: float) -> torch.Tensor:
        """Normalize by this share of the input's own statistics; outside of TorchScript it may be a tensor ()."""
        mean, var = self.statistics(input[:, :, ::2, ::2, ::2], adaptation)
        return nn.functional.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def statistics(self, seen: torch.Tensor, adaptation: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (C,) to normalize by: this share of them of ``seen``, every second voxel of an input."""
        own_var, own_mean = torch.var_mean(seen.to(self.running_mean.dtype), dim=[0, 2, 3, 4], correction=0)
        return torch.lerp(self.running_mean, own_mean, adaptation), torch.lerp(self.running_var, own_var, adaptation)

    @torch.jit.unused  # TorchScript knows no super(), and is for evaluation
    def _train(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)


class FixedNorm(nn.Module):
    """Normalizes a scan as ``norm`` would by this share of its own statistics, and keeps how: ``fixed``.

    Inputs are every second voxel (B, C, D, H, W) of what ``norm`` would see; ``fixed`` is a BatchNorm3d for all of it.
    """

    def __init__(self, norm: AdaptiveBatchNorm3d, adaptation: float) -> None:
        super().__init__()
        self.norm, self.adaptation = norm, adaptation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        norm = self.norm
        self.fixed = nn.BatchNorm3d(self.norm.num_features, self.norm.eps, device="meta").eval()
        self.fixed.running_mean, self.fixed.running_var = norm.statistics(input, self.adaptation)
        self.fixed.weight, self.fixed.bias = norm.weight, norm.bias
        self.fixed.num_batches_tracked = norm.num_batches_tracked
        return self.fixed(input)


def norm_shift(convolution: nn.Conv3d, norm: nn.BatchNorm3d, image: torch.Tensor) -> torch.Tensor:
    """How unlike training's an image's statistics are after the first convolution of a network, in nats.

    It is the Kullback-Leibler divergence D(own || running) of normal distributions with the image's own statistics and
    the running ones of ``norm``, its mean over channels. Every second voxel of ``image`` (B, C, D, H, W) along each
    axis counts.
    """
    with torch.autocast(image.device.type, enabled=False):
        weight = convolution.weight
        bias = convolution.bias
        dilation = convolution.dilation
        x = conv3d(image.to(weight.dtype), weight, bias, stride=2, padding=dilation, dilation=dilation)
    var, mean = torch.var_mean(x, dim=[0, 2, 3, 4], correction=0)
    running = norm.running_var + norm.eps
    ratio = (var + norm.eps) / running
    return 0.5 * (ratio + (mean - norm.running_mean) ** 2 / running - 1 - ratio.log()).mean()
