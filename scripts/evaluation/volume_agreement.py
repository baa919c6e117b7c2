"""Measure how well the predicted volumes of all scans agree with the true ones."""

from collections.abc import Sequence
from math import prod

import torch

from scripts.common.errors import InputError
from scripts.evaluation.metrics import LesionMetric


class VolumeAgreement(LesionMetric):
    """One figure about all scans' lesion volumes in mL; its handler must not save details, as no scan has a value.

    * "bias": mean of predicted - true volume (Bland and Altman, Lancet 1986, 327:307-310);
    * "mae", "rmse": mean absolute difference, and root of the mean squared one;
    * "lower_limit", "upper_limit": of agreement, bias - and + 1.96 standard deviations (n - 1) of the differences;
    * "r2": coefficient of determination of the true volumes by the predicted ones themselves, not by a line fitted to
      them, 1 - sum (true - predicted)^2 / sum (true - mean true)^2: bias lowers it, as it should; negative if the
      mean of the true volumes predicts better.

    Limits and R2 are NaN for fewer than two scans, R2 also if all true volumes are the same.

    Args:
        statistic: one of these.
        spacing: of the masks' voxels in mm.

    Raises:
        InputError: another statistic.
    """

    def __init__(self, statistic: str, spacing: Sequence[float]) -> None:
        super().__init__()
        if statistic not in ("bias", "mae", "rmse", "lower_limit", "upper_limit", "r2"):
            raise InputError(f"statistic {statistic}: expected bias, mae, rmse, lower_limit, upper_limit or r2")
        self.statistic = statistic
        self.millilitres = prod(spacing) / 1000

    def _values(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        masks = torch.stack([y_pred[:, 1], y[:, 1]], dim=1)
        return (masks > 0).flatten(2).sum(2).double() * self.millilitres  # (B, 2): predicted, true

    def aggregate(self) -> torch.Tensor:
        """Return the statistic over all scans."""
        pred, true = self.get_buffer().unbind(1)
        difference = pred - true
        undefined = torch.tensor(torch.nan)
        errors = {"bias": difference, "mae": difference.abs(), "rmse": difference.square()}
        if self.statistic in errors:
            mean = errors[self.statistic].mean()
            return mean.sqrt() if self.statistic == "rmse" else mean
        if len(true) < 2:
            return undefined
        if self.statistic == "r2":
            total = (true - true.mean()).square().sum()
            return 1 - difference.square().sum() / total if total > 0 else undefined
        limit = 1.96 * difference.std()
        return difference.mean() + (limit if self.statistic == "upper_limit" else -limit)


class LesionVolume(LesionMetric):
    """Each scan's lesion volume in mL, on the grid of the masks; 0 where the mask is empty.

    Args:
        of: "pred" or "label".
        spacing: of the masks' voxels in mm.
    """

    def __init__(self, of: str, spacing: Sequence[float]) -> None:
        super().__init__()
        if of not in ("pred", "label"):
            raise InputError(f"of {of}: expected pred or label")
        self.of = of
        self.millilitres = prod(spacing) / 1000

    def _values(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        mask = y_pred if self.of == "pred" else y
        return (mask[:, 1:] > 0).flatten(1).sum(1, keepdim=True).double() * self.millilitres
