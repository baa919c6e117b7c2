"""Lesions that are found are counted as ISLES'22 counts them."""

import numpy as np
import pytest
import torch
from monai.networks import one_hot
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from scripts.evaluation.lesion_detection import LesionwiseF1, PanopticQuality


def masks_of(*lesions: str, side: int = 12) -> torch.Tensor:
    """Masks of a row of voxels, "#.##" being two lesions, along the first axis."""
    masks = torch.zeros(len(lesions), 1, side, 4, 4)
    for mask, row in zip(masks, lesions, strict=True):
        mask[0, : len(row), 1, 1] = torch.tensor([voxel == "#" for voxel in row]).float()
    return masks


@pytest.mark.parametrize(
    ("pred", "true", "f1", "quality"),
    [
        ("##..##", "##..##", 1, 1),
        ("#.....", "##..##", 2 / 3, 0),  # one found by one voxel of two, and no pair with it; one missed
        ("##..##", "##....", 2 / 3, 1 / 1.5),  # one found, one false
        ("######", "##..##", 1, 0),  # one predicted lesion finds both, and is not false; all of it drawn is no lesion
        ("#.#.#.", "#####.", 1, 0),  # one lesion found in pieces is found once
        ("###.##", "##..##", 1, (2 / 3 + 1) / 2),  # the mean IoU of all that are found
        ("..##..", "##..##", 0, 0),  # beside both is not over them
        ("......", "##..##", 0, 0),
        ("##....", "......", 0, 0),
        ("......", "......", 1, 1),
    ],
)
def test_a_lesion_is_found_if_a_voxel_of_it_is_and_has_quality_if_it_is_drawn_well(
    pred: str, true: str, f1: float, quality: float
) -> None:
    for metric, expected in ((LesionwiseF1(), f1), (PanopticQuality(), quality)):
        metric(one_hot(masks_of(pred), 2), one_hot(masks_of(true), 2))
        assert metric.get_buffer().tolist() == [[pytest.approx(expected)]]
        assert metric.aggregate().item() == pytest.approx(expected)


def lesions_of(mask: np.ndarray) -> list[set]:
    """Sets of voxels that touch by a face, an edge or a corner, by a graph of neighbours."""
    voxels = np.argwhere(mask)
    if not len(voxels):
        return []
    graph = cKDTree(voxels).sparse_distance_matrix(cKDTree(voxels), 1, p=np.inf)
    count, numbers = connected_components(graph + graph.T, directed=False)
    return [{tuple(voxel) for voxel in voxels[numbers == i]} for i in range(count)]


def test_lesions_of_any_shape_are_those_of_a_graph_of_neighbours() -> None:
    generator, metric = torch.Generator().manual_seed(0), LesionwiseF1()
    pred, true = (torch.rand(8, 1, 9, 8, 7, generator=generator) > 0.93 for _ in range(2))
    metric(one_hot(pred.float(), 2), one_hot(true.float(), 2))
    expected = []
    for p, t in zip(pred[:, 0].numpy(), true[:, 0].numpy(), strict=True):
        predicted, lesions = lesions_of(p), lesions_of(t)
        found = sum(any(lesion & other for other in predicted) for lesion in lesions)
        false = sum(not any(lesion & other for other in lesions) for lesion in predicted)
        expected.append(found / (found + (false + len(lesions) - found) / 2))
    assert len(set(expected)) > 4
    assert metric.get_buffer().flatten().tolist() == pytest.approx(expected)
    assert metric.aggregate().item() == pytest.approx(np.mean(expected))


def test_panoptic_quality_is_its_formula_for_lesions_of_any_shape() -> None:
    generator, metric = torch.Generator().manual_seed(1), PanopticQuality()
    true = torch.rand(6, 1, 9, 8, 7, generator=generator) > 0.93
    pred = true ^ (torch.rand(6, 1, 9, 8, 7, generator=generator) > 0.97)
    metric(one_hot(pred.float(), 2), one_hot(true.float(), 2))
    expected = []
    for p, t in zip(pred[:, 0].numpy(), true[:, 0].numpy(), strict=True):
        predicted, lesions = lesions_of(p), lesions_of(t)
        overlaps = [len(a & b) / len(a | b) for a in predicted for b in lesions]
        expected.append(2 * sum(o for o in overlaps if o > 0.5) / (len(predicted) + len(lesions)))
    assert 0 < min(expected) < max(expected) < 1
    assert metric.get_buffer().flatten().tolist() == pytest.approx(expected)
