"""Lesions have the volume, place and shape that they were asked for."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.simulation.anatomy import box
from scripts.simulation.lesions import Mask, grown_lesion, load_mask, moved_lesion
from scripts.simulation.random_draws import Draw

SHAPE, AFFINE = box(4)
MNI = np.moveaxis(
    nib.affines.apply_affine(AFFINE, np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)), -1, 0
)
STILL = {
    "lesion_turn": 0,
    "lesion_scale": (1, 1),
    "lesion_shift": 0,
    "lesion_warp": (0, 0),
    "lesion_warp_scale": (20, 20),
}


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Mask:
    """A ball of 20 mm at (-40, -10, 20), written at 2 mm in another orientation."""
    folder: Path = tmp_path_factory.mktemp("masks")
    affine = np.array([[-2, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1.0]])
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices((91, 109, 91)), 0, -1))
    ball = np.linalg.norm(places - (-40, -10, 20), axis=-1) < 20
    nib.save(nib.Nifti1Image(ball.astype(np.uint8) * 255, affine), folder / "ball.nii.gz")
    return load_mask(folder / "ball.nii.gz")


def moved(mask: Mask, **ranges: object) -> np.ndarray:
    draw = Draw(np.random.default_rng(0), STILL | ranges)
    return moved_lesion(mask, torch.from_numpy(MNI).float(), 4, draw)


def centre(share: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(AFFINE, ndimage.center_of_mass(share))


def test_a_mask_that_is_not_moved_stays_where_it_was(mask: Mask) -> None:
    share = moved(mask)
    np.testing.assert_allclose(centre(share), (-40, -10, 20), atol=0.5)
    assert share.sum() * 4**3 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.06)


def test_a_mask_is_scaled_about_its_own_centre(mask: Mask) -> None:
    share = moved(mask, lesion_scale=(1.25, 1.25))
    np.testing.assert_allclose(centre(share), (-40, -10, 20), atol=0.5)
    assert share.sum() / moved(mask).sum() == pytest.approx(0.8**3, rel=0.06)


def test_a_warp_changes_the_shape_but_not_much_else(mask: Mask) -> None:
    share = moved(mask, lesion_warp=(4, 4))
    assert 0.7 < share.sum() / moved(mask).sum() < 1.4
    assert np.linalg.norm(centre(share) - (-40, -10, 20)) < 10
    overlap = np.minimum(share, moved(mask)).sum() / share.sum()
    assert 0.6 < overlap < 0.97


@pytest.mark.parametrize("volume", [1_000, 30_000, 120_000])
def test_a_grown_lesion_has_its_volume_in_one_part_of_the_left_brain(head_maps: np.ndarray, volume: float) -> None:
    tissue = head_maps[1] + head_maps[2] > 0.5
    lesion = grown_lesion(tissue, MNI, 4, volume, Draw(np.random.default_rng(1), {"ragged": (0.05, 0.1), "islands": 0}))
    assert lesion.sum() * 4**3 == pytest.approx(volume, rel=0.15)
    assert ndimage.label(lesion)[1] == 1
    assert tissue[lesion].all()
    assert MNI[0][lesion].max() < 0


def test_no_tissue_no_lesion() -> None:
    draw = Draw(np.random.default_rng(1), {"ragged": (0, 0.1), "islands": 0})
    assert not grown_lesion(np.zeros(SHAPE, bool), MNI, 4, 1e4, draw).any()
