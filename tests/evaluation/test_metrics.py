"""Metrics are those of scikit-learn, of SciPy and of the paper's formula; empty masks count as in docs/training.md."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.networks import one_hot
from scipy import ndimage
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef, precision_score, recall_score

from scripts.common.errors import InputError
from scripts.evaluation.metrics import (
    AbsoluteVolumeDifference,
    ConfusionMatrixRate,
    HausdorffDistance,
    MatthewsCorrelation,
    column,
    is_gain,
    key_metric_of,
    over_subjects,
    per_subject,
)

TRAIN = Path(__file__).resolve().parents[2] / "configs" / "train.json"


@pytest.fixture
def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and truths (6, 1, 9, 8, 7): random ones, then perfect, nothing predicted, no lesion, neither."""
    generator = torch.Generator().manual_seed(0)
    pred = (torch.rand(6, 1, 9, 8, 7, generator=generator) > 0.6).float()
    true = (torch.rand(6, 1, 9, 8, 7, generator=generator) > 0.8).float()
    pred[2] = true[2]
    pred[3] = 0
    true[4] = 0
    pred[5] = true[5] = 0
    return pred, true


def values_of(metric: object, masks: tuple) -> tuple[list[float], float]:
    """As Ignite passes them: decollated, a subject at a time."""
    for pred, true in zip(*masks, strict=True):
        metric([one_hot(pred, 2, dim=0)], [one_hot(true, 2, dim=0)])
    mean = metric.aggregate().item()
    return metric.get_buffer().flatten().tolist(), mean


def test_mcc_is_scikit_learns_also_where_a_mask_is_empty(masks: tuple) -> None:
    values, mean = values_of(MatthewsCorrelation(), masks)
    expected = [matthews_corrcoef(t.flatten(), p.flatten()) for p, t in zip(*masks, strict=True)]
    assert values == pytest.approx(expected, abs=1e-6)
    assert mean == pytest.approx(sum(expected) / 6, abs=1e-6)


def test_avd_is_the_papers_formula_and_left_out_where_there_is_no_lesion(masks: tuple) -> None:
    values, mean = values_of(AbsoluteVolumeDifference(), masks)
    volumes = [(p.sum().item(), t.sum().item()) for p, t in zip(*masks, strict=True)]
    expected = [abs(p - t) / t if t else float("nan") for p, t in volumes]
    assert values == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert mean == pytest.approx(sum(expected[:4]) / 4, rel=1e-6)


def test_dice_of_the_recipe_is_scikit_learns_f1_and_counts_empty_masks(masks: tuple) -> None:
    parser = ConfigParser(json.loads(TRAIN.read_text())["validate"]["additional_metrics"]["val_mean_dice"]["metric_fn"])
    values, mean = values_of(parser.get_parsed_content(""), masks)
    expected = [f1_score(t.flatten(), p.flatten(), zero_division=1) for p, t in zip(*masks, strict=True)]
    assert expected[3:] == [0, 0, 1]
    assert values == pytest.approx(expected, abs=1e-6)
    assert mean == pytest.approx(sum(expected) / 6, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reference", "undefined"), [("precision", precision_score, [4, 6]), ("recall", recall_score, [5, 6])]
)
def test_rates_are_scikit_learns_and_left_out_where_they_divide_by_zero(
    masks: tuple, name: str, reference: object, undefined: list
) -> None:
    values, mean = values_of(ConfusionMatrixRate(name), masks)
    expected = [reference(t.flatten(), p.flatten(), zero_division=math.nan) for p, t in zip(*masks, strict=True)]
    assert [i for i, value in enumerate(expected, 1) if math.isnan(value)] == undefined
    assert values == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert mean == pytest.approx(np.nanmean(expected), abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_hd95_is_the_percentile_of_scipys_distances_in_mm_and_left_out_where_a_mask_is_empty(masks: tuple) -> None:
    spacing = (1.0, 2, 3.5)
    values, mean = values_of(HausdorffDistance(spacing), masks)

    def towards(source: np.ndarray, target: np.ndarray) -> float:
        surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (source, target)]
        return np.percentile(ndimage.distance_transform_edt(~surfaces[1], spacing)[surfaces[0]], 95)

    pairs = [(p[0].numpy() > 0, t[0].numpy() > 0) for p, t in zip(*masks, strict=True)]
    expected = [max(towards(p, t), towards(t, p)) if p.any() and t.any() else math.nan for p, t in pairs]
    assert np.isnan(expected).tolist() == [False] * 3 + [True] * 3
    assert values == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert mean == pytest.approx(np.mean(expected[:3]), rel=1e-5)


def test_hd95_of_two_voxels_is_their_distance_in_mm() -> None:
    pred, true = torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 9)
    pred[0, 0, 1, 1, 1] = true[0, 0, 4, 1, 3] = 1
    values, _ = values_of(HausdorffDistance((1, 1, 2)), (pred, true))
    assert values == pytest.approx([5])


@pytest.mark.parametrize(("pred_full", "true_full"), [(True, False), (False, True), (True, True)])
@pytest.mark.filterwarnings("ignore:A single label was found")
def test_mcc_is_scikit_learns_where_a_mask_is_all_lesion(pred_full: bool, true_full: bool) -> None:
    some = (torch.arange(60).reshape(1, 1, 3, 4, 5) % 7 == 0).float()
    pred, true = (torch.ones_like(some) if full else some for full in (pred_full, true_full))
    values, _ = values_of(MatthewsCorrelation(), (pred, true))
    assert values == pytest.approx([matthews_corrcoef(true.flatten(), pred.flatten())], abs=1e-6)


def test_mcc_of_a_worst_prediction_is_minus_one() -> None:
    true = (torch.arange(60).reshape(1, 1, 3, 4, 5) % 7 == 0).float()
    values, _ = values_of(MatthewsCorrelation(), (1 - true, true))
    assert values == pytest.approx([-1], abs=1e-6)


def test_mcc_of_a_million_voxels_is_that_of_whole_numbers() -> None:
    pred, true = torch.zeros(1, 1, 100, 100, 100), torch.zeros(1, 1, 100, 100, 100)
    true[..., :30] = 1
    pred[..., 1:31] = 1
    pred[0, 0, 0, 0, 50] = 1
    tp, fp, fn, tn = 290_000, 10_001, 10_000, 689_999
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    values, _ = values_of(MatthewsCorrelation(), (pred, true))
    assert values == pytest.approx([expected], rel=1e-6)


def test_a_cohort_without_any_lesion_has_no_mean_avd() -> None:
    empty = torch.zeros(2, 1, 3, 3, 3)
    values, mean = values_of(AbsoluteVolumeDifference(), (empty, empty))
    assert all(math.isnan(value) for value in [*values, mean])


@pytest.mark.parametrize("metric", [AbsoluteVolumeDifference, MatthewsCorrelation, lambda: HausdorffDistance([1] * 3)])
def test_a_batch_is_its_subjects_and_reset_forgets_them(metric: Callable, masks: tuple) -> None:
    expected, _ = values_of(metric(), masks)
    batched = metric()
    batched(*(one_hot(mask, 2) for mask in masks))
    batched.reset()
    batched(*(one_hot(mask, 2) for mask in masks))
    assert batched.get_buffer().flatten().tolist() == pytest.approx(expected, nan_ok=True)


def test_large_volumes_are_exact() -> None:
    true = torch.zeros(1, 1, 160, 160, 160)
    true[..., :80] = 1
    pred = true.clone()
    pred[0, 0, 0, 0, 0] = 0
    metric = AbsoluteVolumeDifference()
    metric(one_hot(pred, 2), one_hot(true, 2))
    assert metric.get_buffer().item() == pytest.approx(1 / (80 * 160 * 160), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 4), (1, 2, 4, 4, 5)])
def test_other_shapes_are_refused(shape: tuple) -> None:
    with pytest.raises(ValueError, match="expected two one-hot masks"):
        MatthewsCorrelation()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(shape))


def test_what_an_engine_has_measured_is_read_from_it_by_the_names_that_users_see() -> None:
    engine = Engine(lambda engine, batch: None)
    classes = torch.tensor([[1.0, 0.5], [0.75, 0.25], [1.0, math.nan]])
    engine.state.metric_details = {"val_mean_dice_with_background": classes, "val_avd": torch.tensor([0.5, 0.1, 2.0])}
    values = per_subject(engine, 3)
    assert list(values) == ["dice_with_background", "avd"]
    assert values["dice_with_background"] == pytest.approx([0.75, 0.5, math.nan], nan_ok=True)
    assert values["avd"] == pytest.approx([0.5, 0.1, 2.0])
    assert [column(name) for name in ("val_mean_dice", "val_mcc", "surface")] == ["dice", "mcc", "surface"]


def test_what_has_no_value_per_subject_is_read_as_a_figure_about_all() -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = {"val_avd": 0.5, "val_volume_r2": 0.75}
    engine.state.metric_details = {"val_avd": torch.tensor([0.25, 0.75])}
    assert over_subjects(engine) == {"volume_r2": 0.75}


@pytest.mark.parametrize(
    ("value", "best", "mode", "min_delta", "gained"),
    [
        (0.5, 0.4, "max", 0.0, True),
        (0.4, 0.4, "max", 0.0, False),
        (0.5, 0.4, "min", 0.0, False),
        (0.3, 0.4, "min", 0.05, True),
        (0.3, 0.4, "min", 0.2, False),
        (0.3, math.nan, "max", 0.2, True),
        (math.nan, 0.3, "min", 0.0, False),
        (math.nan, math.nan, "max", 0.0, False),
    ],
)
def test_a_gain_has_a_direction_and_a_least_size(
    value: float, best: float, mode: str, min_delta: float, gained: bool
) -> None:
    assert is_gain(value, best, mode, min_delta) is gained


def test_a_key_metric_that_is_not_there_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"^key_metric val_dice: expected one of val_mean_dice, val_avd$"):
        key_metric_of({"val_mean_dice": 1, "val_avd": 2}, "val_dice")


def test_counts_are_those_of_scikit_learn(masks: tuple) -> None:
    pred, true = masks
    expected = [
        confusion_matrix(t.flatten(), p.flatten(), labels=[0, 1]).ravel() for p, t in zip(pred, true, strict=True)
    ]
    for of, place in (("tp", 3), ("fp", 1), ("fn", 2)):
        metric = ConfusionMatrixRate(of)
        metric(one_hot(pred, 2), one_hot(true, 2))
        assert metric.get_buffer().flatten().tolist() == [row[place] for row in expected]
