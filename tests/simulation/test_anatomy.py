"""A head's maps: tissue where it is in MNI space, distances in mm, and a T2w scan's own brightness."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.common.errors import InputError
from scripts.simulation.anatomy import Head, box, load_head

SHAPE, AFFINE = box(4)
PLACES = (
    torch.from_numpy(nib.affines.apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1))).movedim(-1, 0).float()
)


def at(head: Head, *mni: float) -> np.ndarray:
    return head.at(torch.tensor(mni, dtype=torch.float32).reshape(3, 1, 1, 1)).ravel()


def loaded(volume: np.ndarray, path: Path) -> np.ndarray:
    nib.save(nib.Nifti1Image(volume, AFFINE), path)
    return load_head(str(path), 4).at(PLACES)


def test_tissue_is_where_the_atlas_has_it(head: Head, head_maps: np.ndarray) -> None:
    fractions = head_maps[:3].sum(0)
    assert fractions.max() < 1.01
    assert head_maps[:3].min() >= 0
    assert at(head, -24, -24, 28)[2] > 0.9  # corona radiata
    assert at(head, -10, -4, 20)[0] > 0.5  # body of the left lateral ventricle
    brain_ml = (fractions > 0.5).sum() * 4**3 / 1000
    assert 1500 < brain_ml < 2200


def test_distances_are_in_mm(head: Head) -> None:
    assert at(head, 0, -18, 98)[4] < -10  # above the scalp
    assert 20 < at(head, -24, -24, 28)[4] < 60
    assert at(head, -10, -4, 20)[5] < 4
    near, far = at(head, -24, -4, 24)[5], at(head, -40, -4, 40)[5]
    assert 4 < near < 20
    assert near + 15 < far < near + 30


def test_bytes_hold_the_maps_to_within_half_a_step(head: Head) -> None:
    maps = head.at(PLACES)
    maps[4:6] = maps[4:6].clip(-20, 63)
    again = Head.of(maps).at(PLACES)
    np.testing.assert_allclose(again, maps, atol=2e-3)
    assert head.maps.dtype == torch.uint8


def test_a_t2w_head_keeps_its_brightness_with_csf_at_1(
    head_maps: np.ndarray, t2w_head: Head, t2w_volume: np.ndarray
) -> None:
    maps = t2w_head.at(PLACES)
    assert np.median(maps[6][head_maps[0] > 0.9]) == pytest.approx(1, abs=0.1)
    ratio = maps[6][t2w_volume > 0] / t2w_volume[t2w_volume > 0]
    np.testing.assert_allclose(ratio, 1 / 500, rtol=0.1)
    for fraction in (0, 2):  # what is CSF and what is white matter is found by that brightness
        assert np.median(maps[fraction][head_maps[fraction] > 0.95]) > 0.9


def test_only_a_name_that_ends_in_t2w_is_a_t2w_scan(head: Head, t2w_volume: np.ndarray, tmp_path: Path) -> None:
    assert len(head.maps) == 6
    assert not loaded(t2w_volume, tmp_path / "sub-T2w_T1w.nii.gz")[6].any()


def test_a_head_without_its_skull_ends_where_its_own_brain_does(
    head_maps: np.ndarray, t2w_volume: np.ndarray, tmp_path: Path
) -> None:
    inside = head_maps[4] > 9
    depth = loaded(np.where(inside, t2w_volume, 0), tmp_path / "brain_T2w.nii.gz")[4]  # smaller than MNI152's
    assert (depth[inside] > 0).mean() > 0.99
    assert (depth[~inside] < 0).mean() > 0.97


def test_what_a_stripping_left_far_from_the_brain_is_none_of_it(
    head_maps: np.ndarray, t2w_volume: np.ndarray, tmp_path: Path
) -> None:
    brain = np.where(head_maps[4] > 9, t2w_volume, 0)
    stray = brain.copy()
    stray[1:4, 1:4, 1:4] = brain.max()
    clean, dirty = loaded(brain, tmp_path / "brain_T2w.nii.gz"), loaded(stray, tmp_path / "stray_T2w.nii.gz")
    np.testing.assert_array_equal(dirty[4], clean[4])


def test_a_head_elsewhere_than_in_mni_space_is_one_line(t2w_volume: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"away_T2w\.nii\.gz.*MNI"):
        loaded(np.where(np.arange(t2w_volume.shape[2]) < 4, t2w_volume, 0), tmp_path / "away_T2w.nii.gz")


def test_brightness_that_no_tissue_has_leaves_no_hole(t2w_head: Head) -> None:
    maps = t2w_head.at(PLACES)
    assert np.isfinite(maps).all()
    assert maps[:3].sum(0)[maps[4] > 8].min() > 0.9


def test_a_bright_spot_in_white_matter_is_no_ventricle(t2w_head: Head, t2w_volume: np.ndarray, tmp_path: Path) -> None:
    spotted, place = t2w_volume.copy(), (slice(17, 19), slice(27, 29), slice(29, 31))  # the left corona radiata
    assert t2w_head.at(PLACES)[5][place].min() > 4
    spotted[place] = 480
    assert loaded(spotted, tmp_path / "ms_T2w.nii.gz")[5][place].min() > 4
