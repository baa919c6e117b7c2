"""A lesion's volume, number and side are what one counts by hand, on any grid."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from scripts.data.lesion_parts import remove_small_lesions
from scripts.inference import lesions
from scripts.inference.lesions import midline


def volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None].float(), affine=torch.from_numpy(affine))


def measure(mask: MetaTensor, head: MetaTensor) -> dict:
    affine = mask.affine.numpy()
    return lesions.measure(mask[0].cpu().numpy() > 0, affine, midline(head[0].cpu().numpy(), affine))


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


def test_where_the_middle_is_not_known_there_is_a_volume_but_no_sides() -> None:
    mask = np.zeros((9, 9, 9))
    mask[1:3, 1, 1] = 1
    found = lesions.measure(mask > 0, np.eye(4), None)
    assert (found["lesion_volume"], found["lesions"]) == (2, 1)
    assert [found[key] for key in ("left_volume", "right_volume", "laterality")] == [None] * 3


class OnAnotherDevice(MetaTensor):
    """As on CUDA: numpy needs a copy on the CPU first."""

    def numpy(self, **kwargs: object) -> np.ndarray:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def cpu(self) -> MetaTensor:
        return self.as_subclass(MetaTensor)


def test_of_masks_on_another_device_small_lesions_are_removed() -> None:
    mask = np.zeros((9, 9, 9))
    mask[:3, :3, :3] = mask[8, 8, 8] = 1
    elsewhere = volume(mask, np.eye(4)).as_subclass(OnAnotherDevice)
    with pytest.raises(TypeError, match="cuda"):
        elsewhere[0].numpy()
    assert remove_small_lesions(elsewhere, 2).sum() == 27


def head_with_lesion(tilt: tuple[float, float, float], centre: float, brightness: float) -> tuple:
    """A head of 150x190x160 mm, tilted by degrees about x, y and z, on a grid of 3 mm with noise; a lesion whose middle
    lies ``centre`` mm to the right of the head's; and the laterality of the lesion in the head's own coordinates.
    """
    shape, voxel = (64, 80, 64), 3.0
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -voxel * (np.array(shape) - 1) / 2 + [11, -4, 7]  # the head is off the scanner's centre
    points = np.indices(shape).reshape(3, -1).T @ affine[:3, :3] + affine[:3, 3] - [11, -4, 7]
    points = points @ Rotation.from_euler("xyz", tilt, degrees=True).as_matrix()
    head = ((points / [75, 95, 80]) ** 2).sum(1) < 1
    head |= (((points - [75, 0, -10]) / [10, 12, 20]) ** 2).sum(1) < 1  # an ear, on one side only
    lesion = (((points - [centre, 10, 5]) / [38, 50, 40]) ** 2).sum(1) < 1
    lesion &= ((points / [72, 92, 77]) ** 2).sum(1) < 1
    noise = np.abs(np.random.default_rng(0).normal(0, 0.02, len(points)))
    image = np.where(lesion, brightness, np.where(head, 1, 0)) + noise
    left = (points[lesion, 0] < 0).mean()
    return *(volume(a.reshape(shape), affine) for a in (lesion, image)), 2 * left - 1


@pytest.mark.parametrize("brightness", [0.2, 4])
@pytest.mark.parametrize("centre", [-33.0, -20.0, 25.0])
@pytest.mark.parametrize(("tilt", "error"), [((0, 0, 0), 0.001), ((3, 5, -3), 0.04), ((10, 8, -6), 0.08)])
def test_a_lesion_of_300_ml_does_not_move_the_middle(
    tilt: tuple, error: float, centre: float, brightness: float
) -> None:
    """The centre of brightness, which was taken before, is off by up to 0.27 here, and by 0.19 without a tilt."""
    mask, image, truth = head_with_lesion(tilt, centre, brightness)
    found = measure(mask, image)
    assert 290_000 < found["lesion_volume"] < 340_000
    assert found["laterality"] == pytest.approx(truth, abs=error)


@pytest.mark.parametrize("data", [np.ones((4, 5, 6)), np.zeros((4, 5, 6)), np.eye(6)[None]])
def test_a_scan_without_a_head_has_a_middle(data: np.ndarray) -> None:
    assert np.isfinite(midline(data, np.eye(4)))
