"""A student's masks are compared with its teacher's: DICE of the two, whatever the truth."""

from pathlib import Path

import pandas
import pytest
import torch
from conftest import EVALUATE, recipe, train_here

from scripts.weights.weights import Weights


@pytest.mark.kept
def test_agreement_is_the_dice_of_both_masks(cohort_dir: Path, tmp_path: Path) -> None:
    grid = {"spacing": [16.0] * 3, "spatial_size": [16] * 3, "epochs": 1, "report": False, "learning_rate": 0.05}
    for name, loss in (("teacher", "cross_entropy"), ("student", "dice")):
        train_here(cohort_dir, tmp_path / name, loss_name=loss, class_weights="balanced", **grid)
    given = {"dataset_dir": cohort_dir, "output_dir": tmp_path / "student", "cache": "none", "report": False}
    parser = recipe(EVALUATE, "teacher_agreement", **given, teacher=tmp_path / "teacher" / "model.pt")
    parser.get_parsed_content("run")
    found = pandas.read_csv(tmp_path / "student" / "metrics.csv")["teacher_agreement"]
    networks = [Weights(str(tmp_path / name / "model.pt")).network().eval() for name in ("teacher", "student")]
    expected = []
    for item in parser.get_parsed_content("validate#dataset"):
        with torch.no_grad():
            a, b = (network(item["image"].as_tensor()[None]).argmax(1) > 0 for network in networks)
        both = int(a.sum() + b.sum())
        expected.append(2 * int((a & b).sum()) / both if both else 1.0)
    assert found.tolist() == pytest.approx(expected, abs=0.03)  # in another precision
