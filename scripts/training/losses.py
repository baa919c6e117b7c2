"""Compute a class-weighted cross-entropy on MONAI's label layout."""

import torch
from torch import nn


class WeightedCrossEntropyLoss(nn.CrossEntropyLoss):
    """Class-weighted, label-smoothed cross-entropy on MONAI's labels, always reduced in fp32 or better.

    With weights w, smoothing e, C classes, voxels v of class y_v and log-probabilities lp, torch computes

        ((1 - e) * sum_v -w[y_v] lp_v[y_v]  +  e / C * sum_v sum_c -w[c] lp_v[c]) / sum_v w[y_v]

    so a class weight also scales that class's share of the smoothing term, at every voxel. For soft labels, T[v] the
    probabilities of voxel v, this is the same written for classes that a voxel has in part:

        sum_v sum_c -w[c] ((1 - e) T[v, c] + e / C) lp_v[c] / sum_v sum_c w[c] T[v, c]

    (torch would divide by the number of voxels, so that one-hot labels and class indices had different losses).

    Args:
        weight: one weight per class, background first; a buffer, so it moves and is saved with the module.
        label_smoothing: e, in [0, 1].

    Example:
        >>> loss = WeightedCrossEntropyLoss(weight=[0.5, 1.0], label_smoothing=0.01)
        >>> loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)).item()  # (0.99 * 0.5 + 0.005 * 1.5) ln 2 / 0.5
        0.69661...
    """

    def __init__(self, weight: list[float], label_smoothing: float = 0.0) -> None:
        if min(weight) < 0 or max(weight) <= 0:
            raise ValueError(f"class weights must not be negative, nor all zero, got {weight}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        super().__init__(weight=torch.as_tensor(weight, dtype=torch.float32), label_smoothing=label_smoothing)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss of logits (B, C, ...) against class indices (B, 1, ...) or (B, ...) of any dtype, or against
        probabilities (B, C, ...).
        """
        if input.dtype in (torch.float16, torch.bfloat16):
            input = input.float()
        weight = self.weight.to(input.dtype)
        soft = target.shape == input.shape
        if target.ndim == input.ndim and not soft:
            target = target.squeeze(1)
        target = target.to(input.dtype) if soft else target.long()
        reduction = "sum" if soft else "mean"
        with torch.autocast(input.device.type, enabled=False):
            loss = nn.functional.cross_entropy(
                input, target, weight, reduction=reduction, label_smoothing=self.label_smoothing
            )
            return loss / torch.einsum("bc...,c->", target, weight) if soft else loss
