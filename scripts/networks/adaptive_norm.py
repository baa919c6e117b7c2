"""MONAI and torch normalize by a volume's own statistics or by those of training: this does by a mixture of both."""

import torch
from torch import nn


class AdaptiveBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d that in evaluation normalizes by ``1 - adaptation`` of its running mean and variance and
    ``adaptation`` of those of its input, so that a scan unlike the training's (stripped of its skull, from another
    scanner) changes less of what a network sees: Schneider et al., Improving robustness against common corruptions by
    covariate shift adaptation (arXiv 2006.16971).

    Inputs (B, C, D, H, W); what is in a batch shares its statistics.
    """

    def __init__(self, num_features: int, adaptation: float) -> None:
        super().__init__(num_features)
        self.adaptation = adaptation

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize."""
        if self.training:
            return self._train(input)
        var, mean = torch.var_mean(input.float(), dim=[0, 2, 3, 4], correction=0)
        mean = torch.lerp(self.running_mean, mean, self.adaptation)
        var = torch.lerp(self.running_var, var, self.adaptation)
        return nn.functional.batch_norm(input, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    @torch.jit.unused  # TorchScript knows no super(), and is for evaluation
    def _train(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input)
