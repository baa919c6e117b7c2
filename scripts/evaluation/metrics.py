"""Measure masks scan by scan, and read the metrics of an engine."""

import warnings
from collections.abc import Sequence

import torch
from ignite.engine import Engine
from monai.metrics import (
    CumulativeIterationMetric,
    compute_confusion_matrix_metric,
    compute_hausdorff_distance,
    get_confusion_matrix,
)

from scripts.common.errors import InputError

COUNTS = ("tp", "fp", "tn", "fn")  # as MONAI counts


class LesionMetric(CumulativeIterationMetric):
    """One value per subject from one-hot masks (B, 2, D, H, W) whose channel 1 is the lesion; the mean skips NaN."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if y_pred.shape != y.shape or y.shape[1] != 2:
            raise ValueError(f"expected two one-hot masks (B, 2, ...), got {tuple(y_pred.shape)} and {tuple(y.shape)}")
        return self._values(y_pred, y).as_subclass(torch.Tensor)  # (B, 1), without MONAI's metadata

    def _values(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._from_counts(get_confusion_matrix(y_pred, y, include_background=False))

    def aggregate(self) -> torch.Tensor:
        """Return the mean over the subjects for which the metric is defined; NaN, where MONAI says 0, if none is."""
        return self.get_buffer().nanmean()


class AbsoluteVolumeDifference(LesionMetric):
    """AVD = |predicted - true volume| / true volume (arXiv 2503.05531); NaN where the true mask is empty."""

    @staticmethod
    def _from_counts(counts: torch.Tensor) -> torch.Tensor:
        tp, fp, _, fn = counts.unbind(-1)
        return torch.where(tp + fn > 0, (fp - fn).abs() / (tp + fn), torch.nan)


class MatthewsCorrelation(LesionMetric):
    """MCC of lesion against background over all voxels; 0, as in scikit-learn, where either mask has one class."""

    @staticmethod
    def _from_counts(counts: torch.Tensor) -> torch.Tensor:
        return compute_confusion_matrix_metric("mcc", counts).nan_to_num(nan=0.0)


class ConfusionMatrixRate(LesionMetric):
    """A rate of the lesion's voxels, NaN where it divides by 0: precision without a predicted lesion, recall without a
    true one.

    Args:
        metric_name: any name that MONAI's ``ConfusionMatrixMetric`` knows, such as "precision" or "recall"; or "tp",
            "fp", "tn" or "fn", for the number of voxels.
    """

    def __init__(self, metric_name: str) -> None:
        super().__init__()
        self.metric_name = metric_name

    def _from_counts(self, counts: torch.Tensor) -> torch.Tensor:
        if self.metric_name in COUNTS:
            return counts[..., COUNTS.index(self.metric_name)]
        return compute_confusion_matrix_metric(self.metric_name, counts)


class HausdorffDistance(LesionMetric):
    """Distance in mm between the lesions' surfaces, the larger of both directions; NaN where a mask is empty.

    Args:
        spacing: of the masks' voxels in mm.
        percentile: of the distances from one surface to the other: 95 is HD95, 100 the Hausdorff distance.
    """

    def __init__(self, spacing: Sequence[float], percentile: float = 95) -> None:
        super().__init__()
        self.spacing = [float(s) for s in spacing]
        self.percentile = percentile

    def _values(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of empty masks, and of an argument that MONAI itself passes
            return compute_hausdorff_distance(y_pred.cpu(), y.cpu(), percentile=self.percentile, spacing=self.spacing)


def key_metric_of(metrics: dict, key_metric: str) -> dict:
    """Return the one of the ``metrics`` that says what is best, by its name; ``InputError``: there is none."""
    if key_metric not in metrics:
        raise InputError(f"key_metric {key_metric}: expected one of {', '.join(metrics)}")
    return {key_metric: metrics[key_metric]}


def is_gain(value: float, best: float, mode: str, min_delta: float) -> bool:
    """Return whether ``value`` is better than ``best`` by over ``min_delta``: greater if ``mode`` is max, less if min.

    A value that is defined is a gain over NaN, and NaN is none.
    """
    return value == value and (best != best or (value - best if mode == "max" else best - value) > min_delta)


def column(name: str) -> str:
    """Return what users see of an engine's metric: ``val_mean_dice`` is "dice", ``val_avd`` is "avd"."""
    return name.removeprefix("val_").removeprefix("mean_")


def per_subject(evaluator: Engine, n_subjects: int) -> dict[str, list[float]]:
    """Return the subjects' values of each metric by its column, in the loader's order; classes are averaged."""
    details = evaluator.state.metric_details.items()
    return {column(name): values.reshape(n_subjects, -1).double().mean(1).tolist() for name, values in details}


def over_subjects(evaluator: Engine) -> dict[str, float]:
    """Return the metrics of all subjects together, which have no details (``save_details``), by their columns."""
    state = evaluator.state
    return {column(name): value for name, value in state.metrics.items() if name not in state.metric_details}
