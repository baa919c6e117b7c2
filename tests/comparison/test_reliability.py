"""Voxels are counted by probability and by disagreement, and shares are those of scikit-learn's curve."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from sklearn.calibration import calibration_curve

from scripts.comparison.reliability import Reliability


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[dict]]:
    """The files of two scans of random voxels, and the scans."""
    torch.manual_seed(0)
    items = []
    for quality in (0.75, None):
        probability = torch.rand(1, 6, 6, 6)
        lesion = (torch.rand_like(probability) < probability**2).float()
        pred = (probability > 0.5).float()
        items.append(
            {
                "probability": probability,
                "uncertainty": 0.5 * torch.rand_like(probability),
                "label": torch.cat([1 - lesion, lesion]),
                "pred": torch.cat([1 - pred, pred]),
                "quality": quality,
            }
        )
    reliability = Reliability([{"subject": "01", "image": "a.nii"}, {"subject": "02", "image": "b.nii"}], str(tmp_path))
    for item in items:
        reliability.add(SimpleNamespace(state=SimpleNamespace(output=[item])))
    reliability.write(SimpleNamespace())
    return tmp_path, items


def test_the_curve_of_probabilities_is_scikit_learns(written: tuple) -> None:
    folder, items = written
    truth, probability = (np.concatenate([i[k][-1].numpy().ravel() for i in items]) for k in ("label", "probability"))
    share, mean = calibration_curve(truth, probability, n_bins=10)
    table = pandas.read_csv(folder / "reliability.csv")
    bins = table[table["of"] == "probability"]
    assert bins["lesion"].to_numpy() == pytest.approx(share)
    assert bins["mean"].to_numpy() == pytest.approx(mean, abs=1e-6)
    assert bins["voxels"].sum() == 2 * 6**3


def test_the_share_that_is_wrong_is_counted_by_disagreement(written: tuple) -> None:
    folder, items = written
    table = pandas.read_csv(folder / "reliability.csv")
    bins = table[table["of"] == "uncertainty"].reset_index()
    wrong = np.concatenate([(i["pred"][1] != i["label"][1]).numpy().ravel() for i in items])
    spread = np.concatenate([i["uncertainty"].numpy().ravel() for i in items])
    inside = (spread >= 0.3) & (spread < 0.35)
    assert bins.loc[6, "low"] == pytest.approx(0.3)
    assert bins.loc[6, "voxels"] == inside.sum()
    assert bins.loc[6, "wrong"] == pytest.approx(wrong[inside].mean())


def test_each_scans_agreement_is_kept(written: tuple) -> None:
    table = pandas.read_csv(written[0] / "agreement.csv", dtype={"subject": str})
    assert table["subject"].tolist() == ["01", "02"]
    assert table["image"].tolist() == ["a.nii", "b.nii"]
    assert table["quality"].tolist()[0] == 0.75
    assert np.isnan(table["quality"].tolist()[1])
