"""Lesions have the volume, place and shape that they were asked for."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.simulation.anatomy import box
from scripts.simulation.lesions import (
    VOLUME_BINS,
    Mask,
    drawn_lesion,
    grown_lesion,
    lacune,
    load_mask,
    load_masks,
    moved_lesion,
)
from scripts.simulation.random_draws import Draw
from scripts.simulation.scanner import RANGES

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


def saved(mask: np.ndarray, voxel: float, path: Path) -> Mask:
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.diag([voxel, voxel, voxel, 1])), path)
    return load_mask(path)


@pytest.mark.parametrize("radius", [1.2, 4, 15])
def test_a_mask_is_smoothed_and_keeps_its_volume(radius: float, tmp_path: Path) -> None:
    inside = np.linalg.norm(np.indices((60, 60, 60)) - 32, axis=0) <= radius
    blocky = inside[..., 2::5].repeat(5, 2)  # as drawn on slices of 5 mm
    mask = saved(blocky, 1, tmp_path / "mask.nii.gz")
    assert mask.volume == blocky.sum()
    assert (mask.share > 127).sum() * 1.5**3 == pytest.approx(mask.volume, rel=0.1 if radius > 2 else 0.7)
    ends = np.flatnonzero((mask.share > 127).any(0).any(0).numpy())
    profile = (mask.share > 127).sum((0, 1))[ends[0] : ends[-1] + 1].numpy()
    if radius > 10:  # from slice to slice of 1.5 mm no more than a third of a slice of 5 mm was different
        assert np.abs(np.diff(profile)).max() * 1.5**2 < np.abs(np.diff(blocky.sum((0, 1)))).max()


def test_a_mask_takes_the_bytes_of_its_bounding_box(tmp_path: Path) -> None:
    inside = np.zeros((150, 180, 150), bool)
    inside[60:90, 70:100, 40:60] = True
    share = saved(inside, 1, tmp_path / "mask.nii.gz").share
    assert share.dtype == torch.uint8
    assert share.numel() < (40 / 1.5 + 1) ** 2 * (30 / 1.5 + 1) * 1.1


def test_all_folders_are_read_and_an_empty_mask_is_one_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        saved(np.ones((4, 4, 4)), 2, tmp_path / name / "mask.nii.gz")
    assert len(load_masks([str(tmp_path / "a"), str(tmp_path / "b")])) == 2
    with pytest.raises(InputError, match=r"mask.nii.gz: no lesion in it"):
        saved(np.zeros((4, 4, 4)), 2, tmp_path / "a" / "mask.nii.gz")


def ball(volume: float) -> Mask:
    """A ball of ``volume`` mm3 in the left hemisphere."""
    radius = (volume * 3 / 4 / np.pi) ** (1 / 3)
    side = int(2 * (radius + 5) / 1.5)
    distance = np.linalg.norm(np.indices((side,) * 3) - side / 2, axis=0) * 1.5
    share = torch.from_numpy((255 * np.clip((radius - distance) / 3 + 0.5, 0, 1)).astype(np.uint8))
    return Mask(share, np.array((-34.0, -20, 10)), np.array((-34.0, -20, 10)), volume)


def drawn(masks: list[Mask], odds: list[float], n: int, head_maps: np.ndarray, **ranges: object) -> list[np.ndarray]:
    given = STILL | {"real_mask": 1, "lesion_mirror": 0, "ragged": (0, 0.1), "islands": 1, "volume_odds": odds} | ranges
    tissue, mni = head_maps[1] + head_maps[2], torch.from_numpy(MNI).float()
    draws = (Draw(np.random.default_rng(seed), given) for seed in range(n))
    return [drawn_lesion(masks, tissue, mni, 4, draw) > 0.5 for draw in draws]


def test_volumes_come_by_the_odds_of_their_bins_whatever_the_masks_are(head_maps: np.ndarray) -> None:
    masks = [ball(v) for v in [12_000] * 20 + [40_000] * 2 + [90_000]]  # most are small; two bins have none
    volumes = np.array([lesion.sum() * 4**3 for lesion in drawn(masks, [0.5, 0.1, 0.1, 0.15, 0.15], 100, head_maps)])
    shares = [np.mean((volumes > low) & (volumes < high)) for low, high in ((8e3, 16e3), (30e3, 50e3), (70e3, 110e3))]
    np.testing.assert_allclose(shares, [0.25, 0.375, 0.375], atol=0.12)


@pytest.mark.parametrize("k", range(5))
def test_a_grown_lesion_has_a_volume_of_the_bin(k: int, head_maps: np.ndarray) -> None:
    for lesion in drawn([], [float(i == k) for i in range(5)], 5, head_maps):
        assert VOLUME_BINS[k] * 0.7 - 64 < lesion.sum() * 4**3 < VOLUME_BINS[k + 1] * 1.2 + 64


def test_lesions_beside_the_first_are_small_and_mostly_large_enough_to_be_seen(head_maps: np.ndarray) -> None:
    odds = RANGES["small"]["volume_odds"]
    volumes = np.array([lesion.sum() * 4**3 for lesion in drawn([], odds, 60, head_maps)])
    assert np.mean(volumes > 900) > 0.65  # 1 mL is 37 voxels of 3 mm
    assert volumes.max() < 25_000


def test_half_of_the_lesions_are_on_the_right(head_maps: np.ndarray) -> None:
    lesions = drawn([ball(9_000)], [0, 0, 1, 0, 0], 100, head_maps, lesion_mirror=0.5)
    right = [centre(lesion)[0] > 0 for lesion in lesions]
    assert 0.35 < np.mean(right) < 0.65
    assert not any(centre(lesion)[0] > 0 for lesion in drawn([ball(9_000)], [0, 0, 1, 0, 0], 10, head_maps))


def test_a_lacune_is_a_small_ball_in_the_depth(head_maps: np.ndarray) -> None:
    axes = np.meshgrid(*[np.arange(-60, 60, 1.5)] * 3, indexing="ij")
    mni, places = torch.from_numpy(np.stack(axes)).float(), []
    for seed in range(12):
        share = lacune(mni, 1.5, Draw(np.random.default_rng(seed), {"lacune": (3, 14), "lacune_place": 0}))
        assert 4 < share.sum() * 1.5**3 < 4 / 3 * np.pi * (7 * 1.3) ** 3
        places.append((mni.numpy() * share).sum((1, 2, 3))[0] / share.sum())
    assert min(places) < -3
    assert max(places) > 3
