"""Lesions are the parts of a mask that touch, and their volume is in mm3 on any grid."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.data.lesion_parts import remove_small_lesions


def volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None].float(), affine=torch.from_numpy(affine))


@pytest.mark.parametrize(("least", "left"), [(0, 30), (24, 30), (24.1, 27), (217, 0)])
def test_lesions_below_a_volume_in_mm3_are_removed(least: float, left: int) -> None:
    mask = np.zeros((9, 9, 9))
    mask[:3, :3, :3] = 1  # 27 voxels of 8 mm3
    mask[6:9, 8, 8] = 1  # 3
    result = remove_small_lesions(volume(mask, np.diag([2.0, 2, 2, 1])), least)
    assert result.sum() == left
    assert isinstance(result, MetaTensor)
