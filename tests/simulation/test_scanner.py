"""A simulated scan is what its ranges say: each test draws one thing and looks at it."""

import re
from pathlib import Path

import numpy as np
import pytest

import scripts.simulation
from scripts.simulation.anatomy import Head
from scripts.simulation.label_map import OUTSIDE
from scripts.simulation.random_draws import Draw
from scripts.simulation.scanner import RANGES, _placed, simulate_scan

SHAPE, VOXEL = (32, 40, 32), 6.0
PLAIN = RANGES["patients"] | RANGES["easy"] | {"noise": (0, 0), "texture": (0, 0), "bias": (0, 0), "no_lesion": 1}


def scan(head: Head, seed: int = 0, **ranges: object) -> tuple[np.ndarray, np.ndarray]:
    return simulate_scan([head], [], SHAPE, VOXEL, np.random.default_rng(seed), PLAIN | ranges, 6e4)


def maps(head: Head, seed: int = 0) -> np.ndarray:
    """The head's maps as that seed has placed them."""
    rng = np.random.default_rng(seed)
    rng.integers(1), rng.integers(1)
    return head.at(_placed(SHAPE, VOXEL, Draw(rng, PLAIN)))


def changed(head: Head, k: int, values: object) -> Head:
    """The head with other bytes as map ``k``."""
    maps = head.maps.clone()
    maps[k] = values
    return Head(maps)


def test_every_range_is_read_and_nothing_else() -> None:
    code = "".join(path.read_text() for path in Path(scripts.simulation.__file__).parent.glob("*.py"))
    read = set(re.findall(r'(?:draw|chance|normal)\(\s*"(\w+)"', code))
    assert read | {*OUTSIDE, "volume_odds"} == set(RANGES["patients"])
    assert set(RANGES["easy"]) < set(RANGES["patients"])


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(head: Head) -> None:
    def draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
        return simulate_scan([head], [], SHAPE, VOXEL, np.random.default_rng(seed), RANGES["patients"])

    (image, label), (other, _), (same, same_label) = draw(1), draw(2), draw(1)  # whatever was drawn before
    np.testing.assert_array_equal(image, same)
    np.testing.assert_array_equal(label, same_label)
    assert np.abs(image - other).max() > 0.1
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() == 1
    assert set(np.unique(label)) <= {0, 1}


def test_a_scan_without_lesion_has_an_empty_mask_and_one_with_has_its_volume(head: Head) -> None:
    assert not scan(head)[1].any()
    volumes = [scan(head, seed, no_lesion=0)[1].sum() * VOXEL**3 for seed in range(4)]
    assert 3e4 < np.median(volumes) < 9e4  # 60 mL were asked for, less what is sulcus


def test_csf_is_brighter_than_grey_than_white_matter(head: Head) -> None:
    image, (csf, grey, white, *_) = scan(head)[0], maps(head)
    fluid, cortex, core = (np.median(image[part > limit]) for part, limit in ((csf, 0.8), (grey, 0.8), (white, 0.95)))
    assert fluid > 1.5 * cortex > 1.5 * core


@pytest.mark.parametrize(
    ("contrast", "order"),
    [({}, ["white", "grey", "fluid"]), ("T1w", ["fluid", "grey", "white"]), ("FLAIR", ["fluid", "white", "grey"])],
)
def test_tissues_are_as_bright_as_in_the_contrast(head: Head, contrast: str, order: list[str]) -> None:
    image, (csf, grey, white, *_) = scan(head, **(RANGES[contrast] if contrast else {}))[0], maps(head)
    shares = {"fluid": csf > 0.8, "grey": grey > 0.8, "white": white > 0.95}
    medians = {name: np.median(image[where]) for name, where in shares.items()}
    assert sorted(medians, key=medians.get) == order


@pytest.mark.parametrize("contrast", ["T1w", "FLAIR"])
def test_a_contrast_shows_the_same_lesion_dark_where_it_is_fluid_and_gliosis_as_it_does(
    head: Head, contrast: str
) -> None:
    varied = {"spots": 1.0, "perivascular": 1.0, "halo": 1.0, "strands": 1.0, "open_to_csf": 0.0}
    for seed in range(3):
        label = scan(head, seed, no_lesion=0, **varied)[1]
        ranges = varied | RANGES[contrast]
        np.testing.assert_array_equal(scan(head, seed, no_lesion=0, **ranges)[1], label)
        inside, healthy = label > 0, scan(head, seed, **ranges)[0]
        fluid, gliosis = (
            scan(head, seed, no_lesion=0, **ranges, **kind)[0][inside]
            for kind in ({"rim": (-9, -9)}, {"all_gliotic": 1.0})
        )
        assert np.median(fluid) < 0.6 * np.median(healthy[inside])
        brighter = np.median(gliosis) > 1.2 * np.median(healthy[inside])
        assert brighter if contrast == "FLAIR" else np.median(gliosis) < 0.9 * np.median(healthy[inside])


def test_another_scanners_noise_is_another(head: Head) -> None:
    noisy = PLAIN | {"noise": (0.05, 0.05)}
    first, second = (
        simulate_scan([head], [], SHAPE, VOXEL, np.random.default_rng(0), noisy, 6e4, np.random.default_rng(k))
        for k in (1, 2)
    )
    assert abs(np.corrcoef((first[0] - scan(head)[0]).ravel(), (second[0] - scan(head)[0]).ravel())[0, 1]) < 0.5
    np.testing.assert_array_equal(first[1], second[1])


def test_a_lesion_is_brighter_than_the_tissue_it_has_replaced(head: Head) -> None:
    (image, label), healthy = scan(head, 3, no_lesion=0), scan(head, 3)[0]
    inside = label > 0
    assert np.median(image[inside]) > 1.5 * np.median(healthy[inside])


def test_ventricles_grow_by_the_mm_that_were_drawn(head: Head) -> None:
    to_ventricle, white = maps(head)[5], maps(head)[2]
    ring = (to_ventricle > 2) & (to_ventricle < 6) & (white > 0.5)
    narrow, wide = (scan(head, ventricle=(mm, mm))[0][ring].mean() for mm in (0, 8))
    assert wide > 1.7 * narrow
    beyond = (to_ventricle > 20) & (white > 0.9)
    narrow, wide = (scan(head, ventricle=(mm, mm))[0][beyond].mean() for mm in (0, 8))
    assert wide == pytest.approx(narrow, rel=0.15)


def test_a_stripped_scan_has_nothing_outside_the_brain(head: Head) -> None:
    outside = maps(head)[4] < -16
    bare, whole = (scan(head, stripped=p, strip_margin=(0, 0), blur=(0.3, 0.3))[0] for p in (1, 0))
    assert bare[outside].mean() < 0.01
    assert bare[maps(head)[4] > 5].mean() > 0.2
    assert whole[(maps(head)[4] < -8) & (maps(head)[4] > -16)].mean() > 0.05


def test_a_defaced_and_a_cut_scan_lack_what_was_cut(head: Head) -> None:
    whole = scan(head)[0] > 0.02
    defaced = scan(head, defaced=1)[0] > 0.02
    assert 0.6 * whole.sum() < defaced.sum() < whole.sum()
    lost = np.argwhere(whole & ~defaced).mean(0) - np.argwhere(whole).mean(0)
    assert lost[1] > 2
    assert lost[2] < 0
    assert (scan(head, cut=1, cut_size=(50, 50))[0] > 0.02).sum() < whole.sum()


def test_a_voxel_of_an_artefact_does_not_darken_a_scan_that_is_scaled_by_a_percentile(head: Head) -> None:
    tissue = maps(head)[2] > 0.9
    clean, by_percentile, by_maximum = (
        np.median(scan(head, artefact=p, percentile=(top, top))[0][tissue])
        for p, top in ((0, 99.5), (1, 99.5), (1, 100))
    )
    assert by_percentile == pytest.approx(clean, rel=0.05)
    assert by_maximum <= clean


def test_white_matter_hyperintensities_and_strands_leave_the_mask_alone(head: Head) -> None:
    mask = scan(head, 5, no_lesion=0)[1]
    for change in ({"spots": 1}, {"perivascular": 1}, {"halo": 1}, {"strands": 1}, {"all_gliotic": 1}):
        assert (scan(head, 5, no_lesion=0, **change)[1] == mask).mean() > 0.99
    plain, spotted = (scan(head, spots=p, caps=p, spot_share=(8, 8), spot_brightness=(0.8, 0.8))[0] for p in (0, 1))
    assert (spotted > plain + 0.2).sum() * VOXEL**3 > 5_000


def test_a_t2w_heads_scan_shows_what_that_head_has_by_the_share_of_its_own_brightness(t2w_head: Head) -> None:
    own, depth = maps(t2w_head)[[6, 4]]
    knot = (own < 0.1) & (depth > 8)  # the dark vessels
    assert knot.any()
    none, half, whole = (scan(t2w_head, own_brightness=(share, share))[0] for share in (0, 0.5, 1))
    inside = depth > 8
    assert np.corrcoef(whole[inside], own[inside])[0, 1] > 0.98
    assert whole[knot].mean() < 0.4 * none[knot].mean()  # what is between is interpolated
    assert whole[knot].mean() < half[knot].mean() < none[knot].mean()
    scalp = (depth < -8) & (own > 0.7)
    assert np.median(whole[scalp]) == pytest.approx(0.8 * np.percentile(whole[inside], 99), rel=0.2)


def test_other_contrasts_of_a_t2w_head_keep_nothing_of_it(t2w_head: Head) -> None:
    bare = changed(t2w_head, 6, t2w_head.maps[6].flip(0) // 2 + 10)  # another scan of the same head
    assert np.abs(scan(t2w_head)[0] - scan(bare)[0]).max() > 0.2
    for contrast in ("T1w", "FLAIR"):
        np.testing.assert_allclose(scan(t2w_head, **RANGES[contrast])[0], scan(bare, **RANGES[contrast])[0], atol=1e-6)


def test_a_lesion_in_a_t2w_head_is_as_bright_as_that_heads_own_fluid(t2w_head: Head) -> None:
    drawn = {"own_brightness": (1, 1), "cavity": (1, 1), "rim": (-9, -9)}
    (image, label), healthy = scan(t2w_head, 3, no_lesion=0, **drawn), scan(t2w_head, 3, **drawn)[0]
    fluid = np.median(healthy[maps(t2w_head, 3)[0] > 0.9])
    inside = label > 0
    assert inside.any()
    assert np.median(image[inside]) == pytest.approx(fluid, rel=0.15)
    assert np.median(image[inside]) > 1.4 * np.median(healthy[inside])


def test_wider_sulci_and_ventricles_of_a_t2w_head_are_filled_with_its_own_fluid(t2w_head: Head) -> None:
    ring, white = maps(t2w_head)[5], maps(t2w_head)[2]
    ring = (ring > 2) & (ring < 6) & (white > 0.5)
    narrow, wide = (scan(t2w_head, ventricle=(mm, mm))[0][ring].mean() for mm in (0, 8))
    assert wide > 1.5 * narrow


def test_a_grid_that_lacks_a_tissue_of_a_t2w_head_gets_a_scan(t2w_head: Head) -> None:
    assert np.isfinite(scan(changed(t2w_head, 0, 0))[0]).all()


def test_a_t2w_head_has_no_eyes_but_its_own(t2w_head: Head) -> None:
    for share, painted in ((0, True), (0.5, False)):  # another contrast's eyes are not in the T2w scan
        dark, bright = (scan(t2w_head, own_brightness=(share, share), eyes=(v, v))[0] for v in (0, 1))
        assert (np.abs(bright - dark).max() > 0.2) == painted


def test_a_brain_without_a_head_has_no_eyes(head: Head) -> None:
    bare = changed(head, 3, head.maps[3] * (head.maps[4] >= 60))  # 60 is the byte of depth 0
    for brain, painted in ((head, True), (bare, False)):
        dark, bright = (scan(brain, eyes=(v, v))[0] for v in (0, 1))
        assert (np.abs(bright - dark).max() > 0.2) == painted
