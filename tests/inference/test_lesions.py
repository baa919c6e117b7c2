"""A lesion's volume, number and side are what one counts by hand, on any grid."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from scripts.inference.lesions import measure, remove_small_lesions


def volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None].float(), affine=torch.from_numpy(affine))


def test_volume_on_an_oblique_anisotropic_grid() -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -30, 40], degrees=True).as_matrix() @ np.diag([-0.5, 1.5, 4.0])
    mask = np.zeros((8, 8, 8))
    mask[:5, :5, :5] = 1
    found = measure(volume(mask, affine), volume(np.ones((8, 8, 8)), affine))
    assert found["lesion_volume"] == pytest.approx(125 * 0.5 * 1.5 * 4)
    assert found["lesion_voxels"] == 125
    assert found["left_volume"] + found["right_volume"] == pytest.approx(found["lesion_volume"])


@pytest.mark.parametrize("flipped", [False, True])
def test_left_is_where_the_affine_says_in_any_orientation(flipped: bool) -> None:
    head, mask = np.zeros((40, 20, 20)), np.zeros((40, 20, 20))
    head[4:30, 2:18, 2:18] = 1  # its middle is between the 16th and the 17th voxel
    mask[5:8, 5:10, 5:10] = 1
    mask[20, 5, 5] = 1
    affine = np.diag([-2.0 if flipped else 2.0, 2.0, 2.0, 1.0])
    affine[0, 3] = 400  # the scanner's centre is elsewhere
    found = measure(volume(mask, affine), volume(head, affine))
    low, high = 75 * 8, 8
    expected = (high, low) if flipped else (low, high)
    assert (found["left_volume"], found["right_volume"]) == pytest.approx(expected)
    assert found["laterality"] == pytest.approx((-1 if flipped else 1) * (low - high) / (low + high))


def test_lesions_that_touch_at_a_corner_are_one_and_no_lesion_has_no_side() -> None:
    mask, image = np.zeros((9, 9, 9)), np.random.default_rng(0).random((9, 9, 9))
    assert measure(volume(mask, np.eye(4)), volume(image, np.eye(4)))["laterality"] is None
    mask[1, 1, 1] = mask[2, 2, 2] = mask[5, 5, 5] = 1
    assert measure(volume(mask, np.eye(4)), volume(image, np.eye(4)))["lesions"] == 2


@pytest.mark.parametrize(("least", "left"), [(0, 30), (24, 30), (24.1, 27), (217, 0)])
def test_lesions_below_a_volume_in_mm3_are_removed(least: float, left: int) -> None:
    mask = np.zeros((9, 9, 9))
    mask[:3, :3, :3] = 1  # 27 voxels of 8 mm3
    mask[6:9, 8, 8] = 1  # 3
    result = remove_small_lesions(volume(mask, np.diag([2.0, 2, 2, 1])), least)
    assert result.sum() == left
    assert isinstance(result, MetaTensor)
