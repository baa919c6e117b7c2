"""An infarct is told from what is no infarct: a cavity at any size, never like a spot, and a mask where it is seen."""

import numpy as np
import pytest

from scripts.simulation.infarct import infarcted
from scripts.simulation.random_draws import Draw
from scripts.simulation.scanner import RANGES

SHAPE, VOXEL = (40, 40, 40), 2.0
BRIGHT = {"csf": 1.0, "grey": 0.4, "white": 0.3, "wet": 1.0, "spots": 0.7}  # spots: at 0.82
PLAIN = RANGES["patients"] | {"rough": (0, 0), "strands": 0, "halo": 0, "lesion_texture": (0, 0), "open_to_csf": 0}
PLACES = np.linalg.norm(np.indices(SHAPE) - 20, axis=0) * VOXEL


def painted(radius: float, seed: int, around: float = 0.3, **ranges: object) -> tuple[np.ndarray, np.ndarray]:
    """A ball of ``radius`` mm in tissue that is as bright as ``around``, by default as white matter; and its mask."""
    image, share = np.full(SHAPE, around, np.float32), np.clip((radius - PLACES) / VOXEL + 0.5, 0, 1).astype(np.float32)
    parts = {"fluid": 0 * image, "grey": 0 * image, "white": 1 + 0 * image}
    draw = Draw(np.random.default_rng(seed), PLAIN | ranges)
    return image, infarcted(image, share, np.ones(SHAPE, bool), parts, BRIGHT, VOXEL, draw)


def test_small_lesions_have_a_cavity_as_often_as_large_ones_and_it_is_brighter_than_any_spot() -> None:
    shares = []
    for radius in (5, 10, 25):
        shares.append(np.mean([painted(radius, seed)[0].max() > 0.84 for seed in range(60)]))
    assert min(shares) > 0.75
    assert max(shares) - min(shares) < 0.2


def test_wholly_gliotic_ones_that_do_not_reach_the_cortex_are_brighter_than_spots() -> None:
    for seed in range(20):
        image, mask = painted(8, seed, all_gliotic=1)
        assert image[mask].max() > 0.82 + 0.05
        assert np.ptp(image[PLACES < 4]) < 0.05  # no cavity


@pytest.mark.parametrize("edge", [0.5, 3])
def test_the_mask_ends_where_half_of_the_contrast_is_left(edge: float) -> None:
    image, mask = painted(16, 1, all_gliotic=1, lesion_edge=(edge, edge))
    half = image > (image[20, 20, 20] + 0.3) / 2
    assert (half != mask).sum() < 0.02 * mask.sum()
    assert mask.sum() * VOXEL**3 == pytest.approx(4 / 3 * np.pi * 16**3, rel=0.1)


@pytest.mark.parametrize(("radius", "around"), [(0.8, 0.3), (10, 1.0)])
def test_a_lesion_that_cannot_be_seen_is_not_there(radius: float, around: float) -> None:
    image, mask = painted(radius, 0, around, cavity=(1, 1), rim=(-9, -9), all_gliotic=0)
    assert not mask.any()
    np.testing.assert_array_equal(image, np.full(SHAPE, around, np.float32))
