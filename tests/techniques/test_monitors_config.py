"""monitors.json measures more, and changes nothing of what is trained or taken for best."""

import base64
import json
import re
from pathlib import Path

import pandas
import pytest
import torch
from conftest import EVALUATE, recipe, train_here
from monai.bundle import ConfigParser

from scripts.weights.weights import Weights

PER_SCAN = ["loss", "precision", "recall", "hd95", "lesionwise_f1", "panoptic_quality"]
OWN = ["train_mean_dice", "seconds", "seconds_data", "seconds_step", "seconds_validation"]
TOGETHER = ["volume_r2", "volume_bias", "volume_lower_limit", "volume_upper_limit"]


def train(cohort_dir: Path, folder: Path, *overlays: str, **overrides: object) -> ConfigParser:
    return train_here(cohort_dir, folder, *overlays, **{"channels": 4, "epochs": 2, "learning_rate": 0.02, **overrides})


@pytest.fixture(scope="module")
def run(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> ConfigParser:
    return train(cohort_dir, tmp_path_factory.mktemp("monitored"), "monitors")


@pytest.fixture(scope="module")
def folder(run: ConfigParser) -> Path:
    return Path(run["output_dir"])


@pytest.mark.slow
def test_weights_and_what_is_best_are_those_of_a_run_without_it(
    run: ConfigParser, folder: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    train(cohort_dir, tmp_path, report=False)
    with_it, without = (torch.load(path / "checkpoint_last.pt") for path in (folder, tmp_path))
    assert all(torch.equal(with_it["network"][key], without["network"][key]) for key in without["network"])
    assert with_it["best"] == without["best"]
    assert run.get_parsed_content("validate#evaluator").state.key_metric_name == "val_mean_dice"
    with_it, without = (pandas.read_csv(path / "history.csv") for path in (folder, tmp_path))
    pandas.testing.assert_frame_equal(with_it[list(without)], without)
    assert set(with_it) - set(without) == {*(f"val_{name}" for name in (*PER_SCAN, *TOGETHER)), *OWN}
    assert (with_it["seconds"] > 0).all()


@pytest.mark.slow
def test_validation_loss_is_torchs_of_the_logits_with_the_last_weights(run: ConfigParser, folder: Path) -> None:
    network = run.get_parsed_content("network").eval()
    losses = []
    for item in run.get_parsed_content("validate#dataset"):
        with torch.no_grad():
            logits = run.get_parsed_content("validate#inferer")(item["image"].as_tensor()[None], network)
        criterion = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0]), label_smoothing=0.01)
        losses.append(criterion(logits, item["label"].as_tensor().long()).item())
    expected = sum(losses) / len(losses)
    assert pandas.read_csv(folder / "history.csv")["val_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_the_reports_curves_have_each_of_them(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    curves = re.search(r'over epochs" src="data:image/svg\+xml;base64,([^"]+)', page).group(1)
    titles = re.findall(r"<!-- (.*?) -->", base64.b64decode(curves).decode())
    assert {"training loss, validation loss", "learning rate", "validation recall"} <= {*titles}
    assert "training dice, validation dice" in titles
    assert {"validation volume bias", "seconds"} <= {*titles}
    assert "Over all scans, differences in mL: volume r2 " in page


@pytest.mark.slow
def test_an_evaluation_has_them_for_each_test_scan_and_agreement_for_all(folder: Path, cohort_dir: Path) -> None:
    recipe("monitors", EVALUATE, dataset_dir=cohort_dir, output_dir=folder, report=False).get_parsed_content("run")
    table, summary = pandas.read_csv(folder / "metrics.csv"), json.loads((folder / "summary.json").read_text())
    assert {*PER_SCAN, "dice", "dice_with_background"} <= {*table}
    assert not {*TOGETHER} & {*table}
    assert list(summary["over_subjects"]) == [*TOGETHER, "volume_mae", "volume_rmse"]
    assert summary["metrics"]["recall"]["mean"] == pytest.approx(table["recall"].mean(), abs=1e-6)
    assert 0 <= table["lesionwise_f1"].min() <= table["lesionwise_f1"].max() <= 1


def test_it_works_with_batches_accumulation_and_no_validation(cohort_dir: Path, tmp_path: Path) -> None:
    train(cohort_dir, tmp_path, "monitors", epochs=1, batch_size=2, accumulation_steps=2, inner_fold="none")
    assert "val_loss" not in pandas.read_csv(tmp_path / "history.csv")


@pytest.mark.kept
def test_any_metric_either_way_says_what_is_best_kept_and_the_end(cohort_dir: Path, tmp_path: Path) -> None:
    overlays = ("monitors", "keep_checkpoints", "early_stopping")
    more = {"key_metric": "val_loss", "mode": "min", "keep_best": 2, "keep_every": 0, "epochs": 9, "report": False}
    more |= {"spacing": [16.0] * 3, "spatial_size": [16] * 3, "patience": 2, "min_delta": 0.002}
    train(cohort_dir, tmp_path, *overlays, schedule_name="plateau", plateau_patience=0, **more)
    losses, best = pandas.read_csv(tmp_path / "history.csv")["val_loss"].tolist(), 0
    for i, loss in enumerate(losses):
        best = i if losses[best] - loss > 0.002 else best
    card = json.loads((tmp_path / "model.json").read_text())
    assert (card["epoch"], card["metrics"]["val_loss"]) == (best + 1, pytest.approx(losses[best], rel=1e-6))
    assert best > 0
    assert len(losses) == min(9, best + 1 + 2)
    assert f"epoch-{best + 1:04d}.pt" in [path.name for path in (tmp_path / "epochs").glob("*.pt")]
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    assert state["best"] == {"best_metric": pytest.approx(losses[best]), "best_metric_epoch": best + 1}
    last = Weights(str(tmp_path / "checkpoint_last.pt")).network().state_dict()
    for weights in (state["network"], torch.load(tmp_path / "model_last.pt", weights_only=True)):
        assert all(torch.equal(last[key], weights[key]) for key in last)
