"""Measure how many lesions are found, of any size, and how well."""

import numpy as np
import torch
from monai.metrics import compute_panoptic_quality
from scipy import ndimage

from scripts.data.lesion_parts import TOUCHING
from scripts.evaluation.metrics import LesionMetric


class LesionwiseF1(LesionMetric):
    """F1 of connected lesions as in ISLES'22 (arXiv 2206.06694, and its evaluation code): 2 TP / (2 TP + FP + FN).

    TP are true lesions of which at least one voxel is predicted, FN true lesions without any, FP predicted lesions
    that touch no voxel of a true one; 1 where neither mask has a lesion. Lesions are 26-connected. One predicted lesion
    that covers the whole head finds all and is not false: read it beside ``PanopticQuality``, which is near 0 then.
    """

    def _values(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        pairs = zip(y_pred[:, 1].cpu().numpy() > 0, y[:, 1].cpu().numpy() > 0, strict=True)
        return torch.tensor([[self._of(pred, true)] for pred, true in pairs])

    def _of(self, pred: np.ndarray, true: np.ndarray) -> float:
        return lesionwise_f1(pred, true)


class PanopticQuality(LesionwiseF1):
    """Panoptic quality of connected lesions (Kirillov et al., 2019): sum of IoU / (TP + FP / 2 + FN / 2).

    A predicted and a true lesion are a pair (TP) if their IoU is above one half; 1 where neither mask has a lesion.
    """

    def _of(self, pred: np.ndarray, true: np.ndarray) -> float:
        parts = [torch.from_numpy(ndimage.label(mask, TOUCHING)[0]) for mask in (pred, true)]
        return float(compute_panoptic_quality(*parts, smooth_numerator=0)) if pred.any() or true.any() else 1.0


def lesionwise_f1(pred: np.ndarray, true: np.ndarray) -> float:
    """Return the F1 of two boolean masks (D, H, W); see ``LesionwiseF1``."""
    (predicted, n_predicted), (lesions, n_lesions) = (ndimage.label(mask, TOUCHING) for mask in (pred, true))
    found, right = (np.unique(parts[pred & true]).size for parts in (lesions, predicted))
    false = n_predicted - right + n_lesions - found
    return 2 * found / (2 * found + false) if n_predicted + n_lesions else 1.0
