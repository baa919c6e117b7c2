"""A run is a training and an evaluation as the commands do them, goes on where it was, and is done once."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import EVALUATE, train_here

from scripts.common.errors import InputError
from scripts.comparison.plan import Plan, Run
from scripts.comparison.run import evaluate_together, train_and_evaluate


def rows(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open()))


@pytest.mark.slow
def test_a_run_trains_the_weights_that_the_command_trains(compared: Path, coarse_dir: Path, tmp_path: Path) -> None:
    """With dropout, which shows that the random states are the command's, too."""
    values = {"channels": 2, "dropout": 0.2, "fold": 1, "inner_fold": "none", "epochs": 1, "seed": 1}
    train_here(coarse_dir, tmp_path, learning_rate=0.02, amp=False, report=False, **values)
    theirs = torch.load(tmp_path / "model.pt", weights_only=True)
    ours = torch.load(compared / "wide" / "fold-1" / "restart-1" / "model.pt", weights_only=True)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_run_is_measured_on_its_held_out_fold_and_on_nothing_else(compared: Path, coarse_dir: Path) -> None:
    scans = json.loads((coarse_dir / "datalist.json").read_text())["training"]
    for fold in (0, 1):
        for last in ("restart-0", "ensemble-2"):
            found = rows(compared / "thin" / f"fold-{fold}" / last / "metrics.csv")
            assert [row["subject"] for row in found] == [s["subject"] for s in scans if s["fold"] == fold]
        card = json.loads((compared / "thin" / f"fold-{fold}" / "restart-0" / "model.json").read_text())
        assert len(card["trained_on"]) == sum(scan["fold"] != fold for scan in scans)


@pytest.mark.slow
def test_volumes_are_those_of_the_masks(compared: Path, coarse_dir: Path) -> None:
    label_of = {s["subject"]: s["label"] for s in json.loads((coarse_dir / "datalist.json").read_text())["training"]}
    found = rows(compared / "thin" / "fold-0" / "restart-0" / "metrics.csv")
    for row in found:
        mask = nib.load(coarse_dir / label_of[row["subject"]])
        voxels = np.abs(np.linalg.det(mask.affine[:3, :3])) / 1000
        true = (mask.get_fdata() > 0).sum() * voxels
        assert float(row["true_volume"]) == pytest.approx(true, rel=0.5, abs=40)  # of a grid eight times as coarse
        avd = abs(float(row["predicted_volume"]) - float(row["true_volume"])) / float(row["true_volume"])
        assert float(row["avd"]) == pytest.approx(avd, abs=1e-5)


@pytest.mark.slow
def test_the_training_state_is_gone_and_the_weights_are_kept(compared: Path) -> None:
    names = {path.name for path in (compared / "wide" / "fold-0" / "restart-1").iterdir()}
    assert {"model.pt", "model.json", "history.csv", "run.json", "metrics.csv", "result.json", "log.txt"} <= names
    assert not any(name.startswith("checkpoint") for name in names)


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_restarts_probabilities(compared: Path, plan_of: Callable) -> None:
    plan: Plan = plan_of(compared)
    folder = compared / "wide" / "fold-0"
    recipe = plan.recipe(Run("wide", 0, 0), EVALUATE, ckpt_path=str(folder / "restart-0" / "model.pt"))
    dataset, network = recipe.get_parsed_content("validate#dataset"), recipe.get_parsed_content("network").eval()
    dice = []
    for item in dataset:
        probabilities = []
        for restart in (0, 1):
            weights = torch.load(folder / f"restart-{restart}" / "model.pt", weights_only=True)
            network.load_state_dict(weights)
            with torch.no_grad():
                probabilities.append(network(item["image"][None].as_tensor()).softmax(1)[0, 1])
        mask, true = (sum(probabilities) / 2 > 0.5), item["label"][0].as_tensor() > 0
        dice.append(float(2 * (mask & true).sum() / (mask.sum() + true.sum())))
    found = [float(row["dice"]) for row in rows(folder / "ensemble-2" / "metrics.csv")]
    assert found == pytest.approx(dice, abs=1e-3)
    assert json.loads((folder / "ensemble-2" / "result.json").read_text())["members"] == 2


@pytest.mark.slow
def test_a_finished_run_is_not_done_again_and_one_of_other_settings_is_refused(
    compared: Path, plan_of: Callable, tmp_path: Path
) -> None:
    run = Run("thin", 0, 0)
    shutil.copytree(compared / run.name, tmp_path / run.name)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / run.name).iterdir()}
    assert train_and_evaluate(plan_of(tmp_path), run)["parameters"] == 9 * (27 + 1 + 2) + 4
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / run.name).iterdir()} == before
    with pytest.raises(InputError, match=r"result\.json: of a run with other settings; give another --output_dir"):
        train_and_evaluate(plan_of(tmp_path, epochs=2), run)


@pytest.mark.slow
def test_what_is_not_trained_by_steps_is_run_and_evaluated_too(
    plan_of: Callable, compared: Path, tmp_path: Path
) -> None:
    """An overlay that fits something else: here it copies weights that are there."""
    weights = compared / "thin" / "fold-0" / "restart-0" / "model"
    copies = [{"_target_": "shutil.copy", "src": f"{weights}{end}", "dst": "@output_dir"} for end in (".pt", ".json")]
    overlay = tmp_path / "copied.json"
    overlay.write_text(json.dumps({"run": ["$@config", *copies]}))
    other = {"name": "copied", "overlays": [str(overlay)], "ensemble": False}
    plan = plan_of(tmp_path / "protocol", **{"+networks": [other]})
    (tmp_path / "protocol" / "copied" / "fold-0" / "restart-0").mkdir(parents=True)
    result = train_and_evaluate(plan, Run("copied", 0, 0))
    assert result["dice"] == json.loads((weights.parent / "result.json").read_text())["dice"]
    assert result["train_seconds"] > 0


def test_an_ensemble_is_evaluated_with_its_runs_overlays_and_cohort(
    tmp_path: Path, plan_of: Callable, coarse_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"mark": 5, "look": ["$print(@mark)"]}))
    (tmp_path / "other.json").write_text((coarse_dir / "datalist.json").read_text())
    common = {"datalist": str(tmp_path / "other.json"), "soft_labels": False, "network_def#dropout": 0.1}
    plan = plan_of(tmp_path / "out", overlays=[str(tmp_path / "mine.json")], overrides=common)
    seen = []
    monkeypatch.setattr("scripts.comparison.run._evaluate", lambda recipe, folder: seen.append(recipe) or {"dice": 1})
    (tmp_path / "out" / "thin" / "fold-0" / "ensemble-2").mkdir(parents=True)
    evaluate_together(plan, Run("thin", 0, None, 2))
    found = [seen[0].get_parsed_content(key) for key in ("datalist", "mark", "fold")]
    assert found == [str(tmp_path / "other.json"), 5, 0]
    assert "dropout" not in seen[0].get("network_def")
