"""Trees as a network: features as SciPy computes them, answers as scikit-learn gives them, and weights without code."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingClassifier

from scripts.common.errors import InputError
from scripts.networks.boosted_trees import BoostedTrees
from scripts.techniques.boosting import as_weights
from scripts.weights.card import network_from_card, read_card
from scripts.weights.checkpoint import write_weights

GRID = {"smoothing": (3.0, 8.0), "spacing": (2.0, 3.0, 4.0), "orientation": "PRS"}
IMAGE = torch.from_numpy(np.random.default_rng(0).random((2, 1, 12, 14, 10), dtype=np.float32))
FEATURES = BoostedTrees(**GRID).features(IMAGE).numpy()


def fitted(n: int = 3000, trees: int = 12, leaves: int = 8) -> tuple[HistGradientBoostingClassifier, BoostedTrees]:
    """Of voxels that are lesion where they are bright and far to one side, and some that are at random."""
    rng = np.random.default_rng(1)
    voxels = FEATURES.transpose(0, 2, 3, 4, 1).reshape(-1, FEATURES.shape[1])
    voxels = voxels[rng.permutation(len(voxels))[:n]]
    lesion = (voxels[:, 0] + voxels[:, -1] / 20 > 0.6) ^ (rng.random(len(voxels)) < 0.1)
    booster = HistGradientBoostingClassifier(max_iter=trees, max_leaf_nodes=leaves, early_stopping=False)
    network = BoostedTrees(trees, leaves, **GRID)
    network.load_state_dict(as_weights(booster.fit(voxels, lesion, rng.uniform(0.5, 2, len(voxels))), network))
    return booster, network


def test_averages_are_gaussian_with_standard_deviations_in_mm() -> None:
    for i, mm in enumerate(GRID["smoothing"]):
        sigma = [0, *(mm / size for size in GRID["spacing"])]
        expected = ndimage.gaussian_filter(IMAGE[:, 0].numpy(), sigma, mode="nearest", truncate=4)
        np.testing.assert_allclose(FEATURES[:, 1 + i], expected, atol=1e-5)
    np.testing.assert_array_equal(FEATURES[:, 0], IMAGE[:, 0])


def test_differences_are_from_the_mirror_image_along_the_axis_that_is_left_to_right() -> None:
    for scale in range(3):
        np.testing.assert_allclose(
            FEATURES[:, 3 + scale], FEATURES[:, scale] - np.flip(FEATURES[:, scale], axis=2), atol=1e-6
        )


def test_the_position_is_in_mm_from_the_centre_of_mass() -> None:
    for scan, image in zip(FEATURES, IMAGE[:, 0].numpy(), strict=True):
        centre = np.array(ndimage.center_of_mass(image))
        for voxel in ((0, 0, 0), (3, 7, 9)):
            expected = (np.array(voxel) - centre) * GRID["spacing"]
            np.testing.assert_allclose(scan[(slice(-3, None), *voxel)], expected, atol=1e-3)
    assert torch.isfinite(BoostedTrees().features(torch.zeros(1, 1, 4, 4, 4))).all()


def test_its_probabilities_are_scikit_learns() -> None:
    booster, network = fitted()
    found = network(IMAGE).softmax(dim=1).numpy().transpose(0, 2, 3, 4, 1).reshape(-1, 2)
    voxels = FEATURES.transpose(0, 2, 3, 4, 1).reshape(-1, FEATURES.shape[1])
    np.testing.assert_allclose(found, booster.predict_proba(voxels), atol=1e-6)
    assert 0.02 < found[:, 1].min() + 0.05 < 0.5 < found[:, 1].max()


def test_a_voxel_on_a_threshold_goes_where_scikit_learn_sends_it() -> None:
    """Values so close that a threshold between two of them is none that float32 has."""
    values = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2**-23)
    voxels, lesion = np.repeat(values, 50)[:, None], np.repeat(np.arange(64) % 2 == 0, 50)
    booster = HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=64, min_samples_leaf=1, early_stopping=False)
    booster.fit(voxels, lesion)
    network = BoostedTrees(3, 64, smoothing=(1.0,))
    network.load_state_dict(as_weights(booster, network))
    network.features = lambda image: image
    found = network(torch.from_numpy(values).view(1, 1, 64, 1, 1)).softmax(dim=1)[0, 1].flatten()
    np.testing.assert_allclose(found.numpy(), booster.predict_proba(values[:, None])[:, 1], atol=1e-6)


def test_without_trees_all_odds_are_even_and_learning_anew_forgets() -> None:
    assert BoostedTrees()(IMAGE).abs().max() == 0
    booster, network = fitted()
    other = fitted(n=500)[1]
    other.load_state_dict(as_weights(booster, other))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in other.state_dict().items())


def test_mixed_precision_does_not_round_its_features() -> None:
    network = fitted()[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(IMAGE), network(IMAGE.clone()))
        mixed = network(IMAGE)
    assert torch.equal(mixed, network(IMAGE))


def test_its_weights_load_without_running_code_and_its_card_rebuilds_it(tmp_path: Path) -> None:
    network = fitted()[1]
    definition = {"_target_": "scripts.networks.boosted_trees.BoostedTrees", "trees": 12, "leaves": 8, **GRID}
    card = {"network_def": definition, "spacing": GRID["spacing"], "spatial_size": [12, 14, 10], "intensity": []}
    write_weights(tmp_path / "model.pt", network, card)
    rebuilt = network_from_card(read_card(str(tmp_path / "model.pt")))
    rebuilt.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(rebuilt(IMAGE), network(IMAGE))
    assert sum(p.numel() for p in rebuilt.parameters()) == 12 * 15


@pytest.mark.parametrize("wrong", [{"trees": 0}, {"leaves": 1}, {"smoothing": (6.0, 0.0)}, {"smoothing": 6.0}])
def test_what_makes_no_tree_is_refused_with_name_and_value(wrong: dict) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must be .* got {re.escape(str(value))}"):
        BoostedTrees(**wrong)


def test_they_cannot_be_exported_which_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^boosted trees cannot be exported; segment with"):
        torch.jit.trace(BoostedTrees(1), IMAGE)
