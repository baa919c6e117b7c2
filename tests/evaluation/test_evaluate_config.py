"""configs/evaluate.json measures the masks that inference draws of the held-out outer fold, as other libraries do."""

import csv
import json
import math
import shutil
import statistics
from pathlib import Path

import monai.bundle
import nibabel as nib
import pytest
import torch
from conftest import EVALUATE, INFERENCE, TRAIN, bundle, recipe, refused

SETTINGS = {"threshold": 0.2, "min_volume": 3000, "flip_averaging": True}


@pytest.fixture(scope="module")
def rows(evaluated: tuple[Path, str]) -> list[dict]:
    """The rows of metrics.csv."""
    return list(csv.DictReader((evaluated[0] / "metrics.csv").open()))


def test_every_scan_of_the_outer_fold_and_no_other_is_evaluated(rows: list[dict], trained: dict) -> None:
    assert [row["subject"] for row in rows] == [s["subject"] for s in trained["scans"] if s["fold"] == 0]


def test_summary_is_of_the_rows(rows: list[dict], evaluated: tuple[Path, str]) -> None:
    summary = json.loads((evaluated[0] / "summary.json").read_text())
    for column in ("dice", "avd", "mcc", "dice_with_background"):
        values = [float(row[column]) for row in rows]
        pooled = summary["metrics"][column]
        assert pooled["n"] == len(rows)
        assert pooled["mean"] == pytest.approx(statistics.mean(values), abs=1e-5)
        assert pooled["sd"] == pytest.approx(statistics.stdev(values), abs=1e-5)
        assert pooled["median"] == pytest.approx(statistics.median(values), abs=1e-5)
        printed = evaluated[1].splitlines()
        assert any(line.startswith(column) and f"{pooled['mean']:.3f}" in line for line in printed)
    assert summary["cohort"].startswith("Simulated")


def test_lesion_dice_is_not_above_mcc_and_dice_with_background_is_its_mean_with_almost_one(rows: list[dict]) -> None:
    # why docs/experiments/2026-11-20-which-dice.md takes the paper's DICE, which is above its MCC, for a mean of both
    for row in rows:
        dice, mcc, both = (float(row[key]) for key in ("dice", "mcc", "dice_with_background"))
        assert dice <= mcc + 0.02
        assert both == pytest.approx((1 + dice) / 2, abs=0.01)


def test_overlay_names_only_differences() -> None:
    base, overlay = recipe(), json.loads(Path(EVALUATE).read_text())
    for key, value in overlay.items():
        if key not in ("evaluating", "ckpt_path", "tested", "weights", "scans", "norm_adaptation", *SETTINGS):
            assert key.lstrip("+") in base, key
            assert base[key.lstrip("+")] != value, key


def test_the_network_is_the_cards_and_weights_of_another_are_one_line(trained: dict, tmp_path: Path) -> None:
    card = json.loads((trained["root"] / "models" / "model.json").read_text())
    card["network_def"]["channels"] = 16
    shutil.copy(trained["root"] / "models" / "model.pt", tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(card))
    with refused(r"^[^\n]*model.pt: weights of another network, [^\n]*is \(8, 1, 3, 3, 3\) there[^\n]*$"):
        run(trained, tmp_path / "model.pt", tmp_path)


def test_recorded_lesion_volumes_are_those_of_the_masks(rows: list[dict], trained: dict, cohort_dir: Path) -> None:
    label_of = {scan["subject"]: cohort_dir / scan["label"] for scan in trained["scans"]}
    for row in rows:
        mask = nib.load(label_of[row["subject"]])
        volume = (mask.get_fdata() > 0).sum() * math.prod(mask.header.get_zooms())
        assert float(row["lesion_volume"]) == pytest.approx(volume, abs=0.1)


@pytest.fixture(scope="module")
def weights(trained: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with settings of its own."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    shutil.copy(trained["root"] / "models" / "model.pt", path)
    card = json.loads((trained["root"] / "models" / "model.json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, **SETTINGS}))
    return path


@pytest.fixture(scope="module")
def as_the_card(trained: dict, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of metrics.csv."""
    summary, rows = evaluate(trained, weights, tmp_path_factory.mktemp("evaluated"))
    assert summary["settings"] == {**SETTINGS, "norm_adaptation": 0, "norm_shift_limit": None}
    return rows


def run(trained: dict, weights: object, output: Path, **own: object) -> None:
    """What ``python -m monai.bundle run evaluating`` does, in this process."""
    arguments = dict(zip(*[iter(trained["arguments"])] * 2, strict=True))
    files, where = [TRAIN, EVALUATE], {"output_dir": str(output), "ckpt_path": str(weights)}
    monai.bundle.run("evaluating", config_file=files, dataset_dir=arguments["--dataset_dir"], **where, **own)


def evaluate(trained: dict, weights: object, output: Path, **own: object) -> tuple[dict, list[dict]]:
    run(trained, weights, output, **own)
    summary = json.loads((output / "summary.json").read_text())
    return summary, list(csv.DictReader((output / "metrics.csv").open()))


@pytest.mark.slow
def test_the_dice_is_that_of_the_masks_that_inference_writes(
    as_the_card: list[dict], trained: dict, weights: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    result = bundle(
        *("inference", "--config_file", INFERENCE, "--input", cohort_dir, "--ckpt_path", weights),
        *("--output_dir", tmp_path / "masks", "--qc", "false"),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    on_the_grid = 0
    for row in as_the_card:
        scan = cohort_dir / row["image"]
        if nib.load(scan).header.get_zooms() != (8, 8, 8):
            continue  # evaluation is on the weights' grid
        on_the_grid += 1
        (label,) = (cohort_dir / s["label"] for s in trained["scans"] if s["subject"] == row["subject"])
        mask = next((tmp_path / "masks").glob(f"**/{scan.name.removesuffix('_T2w.nii.gz')}_desc-lesion_mask.nii.gz"))
        drawn, true = (nib.load(path).get_fdata() > 0 for path in (mask, label))
        assert float(row["dice"]) == pytest.approx(2 * (drawn & true).sum() / (drawn.sum() + true.sum()), abs=1e-5)
    assert on_the_grid >= 4


@pytest.mark.slow
@pytest.mark.parametrize("own", [{"threshold": 0.9}, {"min_volume": 1_000_000}, {"flip_averaging": False}])
def test_each_setting_of_ones_own_changes_the_figures(
    own: dict, as_the_card: list[dict], trained: dict, weights: Path, tmp_path: Path
) -> None:
    _, rows = evaluate(trained, weights, tmp_path, **own)
    assert any(row["dice"] != other["dice"] for row, other in zip(rows, as_the_card, strict=True))


@pytest.mark.slow
def test_members_are_averaged(as_the_card: list[dict], trained: dict, weights: Path, tmp_path: Path) -> None:
    twice = tmp_path / "again.pt"
    shutil.copy(weights, twice)
    shutil.copy(weights.with_suffix(".json"), twice.with_suffix(".json"))
    _, rows = evaluate(trained, f"{weights},{twice}", tmp_path / "both")
    assert [row["dice"] for row in rows] == [row["dice"] for row in as_the_card]
    state = torch.load(twice)
    state["classifier.bias"][0] += 1  # another that finds less
    torch.save(state, twice)
    both, alone = (
        evaluate(trained, path, tmp_path / str(i))[1] for i, path in enumerate((f"{weights},{twice}", twice))
    )
    assert [row["dice"] for row in both] != [row["dice"] for row in as_the_card]
    assert [row["dice"] for row in both] != [row["dice"] for row in alone]


def test_a_setting_out_of_range_is_a_line(trained: dict, weights: Path, tmp_path: Path) -> None:
    with refused(r"threshold 2[^\n]*$"):
        run(trained, weights, tmp_path, threshold=2)
