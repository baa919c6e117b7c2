"""Agreement of volumes is that of Bland and Altman's paper, and scikit-learn's R2."""

import numpy as np
import pytest
import torch
from monai.networks import one_hot
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from scripts.common.errors import InputError
from scripts.evaluation.volume_agreement import LesionVolume, VolumeAgreement

# The table of the paper: peak flow in l/min by a large and by a mini meter. It gives 2 standard deviations as limits.
LARGE = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def agreement(statistic: str, pred: list[int], true: list[int], spacing: tuple = (10, 10, 10)) -> float:
    """Of masks with these numbers of voxels, by default of 1 mL, a scan at a time as Ignite passes them."""
    metric = VolumeAgreement(statistic, spacing)
    for volumes in zip(pred, true, strict=True):
        masks = [one_hot((torch.arange(1000).reshape(1, 10, 10, 10) < n).float(), 2, dim=0) for n in volumes]
        metric(*([mask] for mask in masks))
    value = metric.aggregate().item()
    metric.reset()
    return value


def test_bias_and_limits_are_those_of_the_paper() -> None:
    assert agreement("bias", LARGE, MINI) == pytest.approx(-2.1, abs=0.05)
    for statistic, twice in (("lower_limit", -79.7), ("upper_limit", 75.5)):
        assert agreement(statistic, LARGE, MINI) == pytest.approx(-2.1 + (twice + 2.1) * 1.96 / 2, abs=0.15)


def test_r2_is_scikit_learns() -> None:
    assert agreement("r2", LARGE, MINI) == pytest.approx(r2_score(MINI, LARGE))
    shifted = [volume + 200 for volume in MINI]
    assert np.corrcoef(shifted, MINI)[0, 1] == pytest.approx(1)  # correlated they are, and do not agree
    assert agreement("r2", shifted, MINI) == pytest.approx(r2_score(MINI, shifted))
    assert agreement("r2", shifted, MINI) < 0


def test_volumes_are_in_millilitres() -> None:
    assert agreement("bias", [300, 0], [100, 0], spacing=(1, 2, 2.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("statistic", ["lower_limit", "upper_limit", "r2"])
@pytest.mark.filterwarnings("error")
def test_one_scan_has_a_difference_and_no_spread(statistic: str) -> None:
    assert np.isnan(agreement(statistic, [30], [20]))
    assert agreement("bias", [30], [20]) == pytest.approx(10)


def test_scans_without_lesions_count_as_0_ml_and_r2_needs_volumes_that_differ() -> None:
    assert np.isnan(agreement("r2", [10, 0, 0], [0, 0, 0]))
    assert agreement("bias", [30, 0, 0], [0, 0, 60]) == pytest.approx(-10)


def test_another_statistic_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"statistic mode: expected bias, mae, rmse, lower_limit, upper_limit or r2"):
        VolumeAgreement("mode", (1, 1, 1))


def test_volumes_are_voxels_times_their_size() -> None:
    masks = torch.zeros(2, 2, 4, 4, 4)
    masks[0, 1, :2], masks[1, 1] = 1, 0
    masks[:, 0] = 1 - masks[:, 1]
    label = masks.flip(1)
    for of, volumes in (("pred", [32 * 0.006, 0]), ("label", [32 * 0.006, 64 * 0.006])):
        metric = LesionVolume(of, spacing=(1.0, 2.0, 3.0))
        metric(masks, label)
        assert metric.get_buffer().flatten().tolist() == pytest.approx(volumes)
    with pytest.raises(InputError, match="of both: expected pred or label"):
        LesionVolume("both", spacing=(1.0, 2.0, 3.0))


def test_errors_are_those_of_scikit_learn() -> None:
    assert agreement("mae", LARGE, MINI) == pytest.approx(mean_absolute_error(MINI, LARGE))
    assert agreement("rmse", LARGE, MINI) == pytest.approx(root_mean_squared_error(MINI, LARGE))
