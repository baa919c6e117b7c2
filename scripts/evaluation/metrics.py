"""The metrics that MONAI lacks, AVD and an MCC without NaN, and a reading of all that an engine has measured."""

import torch
from ignite.engine import Engine
from monai.metrics import CumulativeIterationMetric, compute_confusion_matrix_metric, get_confusion_matrix


class _LesionMetric(CumulativeIterationMetric):
    """One value per subject from one-hot masks (B, 2, D, H, W) whose channel 1 is the lesion; the mean skips NaN."""

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if y_pred.shape != y.shape or y.shape[1] != 2:
            raise ValueError(f"expected two one-hot masks (B, 2, ...), got {tuple(y_pred.shape)} and {tuple(y.shape)}")
        counts = get_confusion_matrix(y_pred, y, include_background=False)
        return self._from_counts(counts).as_subclass(torch.Tensor)  # (B, 1), without MONAI's metadata

    def aggregate(self) -> torch.Tensor:
        """Mean over the subjects for which the metric is defined."""
        return self.get_buffer().nanmean()


class AbsoluteVolumeDifference(_LesionMetric):
    """AVD = |predicted - true volume| / true volume (arXiv 2503.05531); NaN where the true mask is empty."""

    @staticmethod
    def _from_counts(counts: torch.Tensor) -> torch.Tensor:
        tp, fp, _, fn = counts.unbind(-1)
        return torch.where(tp + fn > 0, (fp - fn).abs() / (tp + fn), torch.nan)


class MatthewsCorrelation(_LesionMetric):
    """MCC of lesion against background over all voxels; 0, as in scikit-learn, where either mask has one class."""

    @staticmethod
    def _from_counts(counts: torch.Tensor) -> torch.Tensor:
        return compute_confusion_matrix_metric("mcc", counts).nan_to_num(nan=0.0)


def column(name: str) -> str:
    """What users see of an engine's metric: ``val_mean_dice`` is "dice", ``val_avd`` "avd"."""
    return name.removeprefix("val_").removeprefix("mean_")


def per_subject(evaluator: Engine, n_subjects: int) -> dict[str, list[float]]:
    """The subjects' values of each metric by its column, in the loader's order; several classes are averaged."""
    details = evaluator.state.metric_details.items()
    return {column(name): values.reshape(n_subjects, -1).double().mean(1).tolist() for name, values in details}
