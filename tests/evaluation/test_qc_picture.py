"""The picture shows the scan where the lesion is, with its outline on it."""

import io

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from monai.data import MetaTensor

from scripts.evaluation.qc_picture import _where, draw

AFFINES = {
    "RAS": np.diag([3.0, 3.0, 4.0, 1.0]),
    "PSR": np.array([[0, 0, 4.0, -60], [-3.0, 0, 0, 60], [0, 3.0, 0, -60], [0, 0, 0, 1]]),
}


def volume(array: np.ndarray, affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None].float(), affine=torch.from_numpy(affine))


def head() -> tuple[np.ndarray, np.ndarray]:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 36, 30)], indexing="ij"))
    return (np.linalg.norm(grid, axis=0) < 0.9) * (0.5 + 0.1 * grid[0]), np.linalg.norm(grid - 0.3, axis=0) < 0.25


def pixels(picture: bytes) -> np.ndarray:
    return imread(io.BytesIO(picture))[..., :3]


def red(image: np.ndarray) -> int:
    return int(((image[..., 0] > 0.7) & (image[..., 1] < 0.3)).sum())


@pytest.mark.parametrize("orientation", AFFINES)
def test_the_outline_is_drawn_in_the_colour_that_names_it(orientation: str) -> None:
    scan, lesion = (volume(array, AFFINES[orientation]) for array in head())
    with_outline, without = (pixels(draw(scan, masks)) for masks in ({"red": lesion}, {}))
    assert red(with_outline) > 200
    assert red(without) == 0
    assert with_outline.max() > 0.5


def test_an_empty_mask_is_a_picture_without_an_outline() -> None:
    scan, lesion = (volume(array, AFFINES["RAS"]) for array in head())
    assert red(pixels(draw(scan, {"red": lesion * 0}))) == 0


def test_a_scan_that_does_not_tell_left_from_right_gets_no_letters() -> None:
    scan, _ = (volume(array, AFFINES["RAS"]) for array in head())
    scan.meta["sides_known"] = False
    without = pixels(draw(scan, {}))
    scan.meta["sides_known"] = True
    assert 0 < (pixels(draw(scan, {})) != without).any(-1).mean() < 0.05


def test_the_planes_cross_in_the_largest_slices() -> None:
    import nibabel as nib

    mask = np.zeros((20, 20, 20), np.float32)
    mask[4:6, 3:17, 12:14] = 1
    mask[5, 3:17, 3:17] = 1  # the largest slice across the first axis
    image = nib.Nifti1Image(mask, np.diag([2.0, 2.0, 2.0, 1.0]))
    centre, heights = _where(image, image, 5)
    assert centre[0] == 10
    assert centre[2] in (24, 26)
    assert len(heights) == 5
    assert sorted(heights) == heights
    assert heights[0] < 2 * 3
    assert heights[-1] > 2 * 16


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_scan_of_one_slice_is_drawn_with_its_outline(axis: int) -> None:
    scan, lesion = (array.take([int(0.65 * array.shape[axis])], axis) for array in head())
    scan, lesion = (volume(np.ascontiguousarray(array), AFFINES["RAS"]) for array in (scan, lesion))
    assert red(pixels(draw(scan, {"red": lesion}))) > 100


def test_values_below_zero_are_drawn() -> None:
    scan, lesion = (volume(array, AFFINES["RAS"]) for array in head())
    assert red(pixels(draw(scan - 2, {"red": lesion}))) > 200
