"""configs/as_inference.json measures the masks that configs/inference.json writes, by the settings of the card."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import EVALUATE, INFERENCE, ROOT, TRAIN, bundle

AS_INFERENCE = str(ROOT / "configs" / "as_inference.json")
SETTINGS = {"threshold": 0.2, "min_volume": 3000, "flip_averaging": True}


@pytest.fixture(scope="module")
def weights(trained: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network with settings of its own."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    shutil.copy(trained["root"] / "models" / "model.pt", path)
    card = json.loads((trained["root"] / "models" / "model.json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**card, **SETTINGS}))
    return path


def evaluate(trained: dict, weights: Path, output: Path, *overrides: object) -> tuple[dict, list[dict]]:
    arguments = dict(zip(*[iter(trained["arguments"])] * 2, strict=True))
    where = ["--dataset_dir", arguments["--dataset_dir"], "--ckpt_path", weights, "--output_dir", output]
    files = f"['{TRAIN}','{EVALUATE}','{AS_INFERENCE}']"
    result = bundle("evaluating", "--config_file", files, *where, "--report", "false", *overrides)
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((output / "summary.json").read_text())
    return summary, list(csv.DictReader((output / "metrics.csv").open()))


def test_the_dice_is_that_of_the_masks_that_inference_writes(
    trained: dict, weights: Path, cohort_dir: Path, tmp_path: Path
) -> None:
    summary, rows = evaluate(trained, weights, tmp_path / "evaluated")
    assert summary["settings"] == SETTINGS
    result = bundle(
        *("inference", "--config_file", INFERENCE, "--input", cohort_dir, "--ckpt_path", weights),
        *("--output_dir", tmp_path / "masks", "--qc", "false"),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    on_the_grid = 0
    for row in rows:
        scan = cohort_dir / row["image"]
        if nib.load(scan).header.get_zooms() != (8, 8, 8):
            continue  # evaluation is on the weights' grid
        on_the_grid += 1
        (label,) = (cohort_dir / s["label"] for s in trained["scans"] if s["subject"] == row["subject"])
        mask = next((tmp_path / "masks").glob(f"**/{scan.name.removesuffix('_T2w.nii.gz')}_desc-lesion_mask.nii.gz"))
        drawn, true = (nib.load(path).get_fdata() > 0 for path in (mask, label))
        assert float(row["dice"]) == pytest.approx(2 * (drawn & true).sum() / (drawn.sum() + true.sum()), abs=1e-5)
    assert on_the_grid >= 4


def test_settings_of_ones_own_change_the_figures_and_one_out_of_range_is_a_line(
    trained: dict, weights: Path, tmp_path: Path
) -> None:
    own = ("--threshold", 0.9, "--min_volume", 0, "--flip_averaging", "false")
    _, strict = evaluate(trained, weights, tmp_path / "strict", *own)
    _, loose = evaluate(trained, weights, tmp_path / "loose")
    assert not np.allclose([float(row["dice"]) for row in strict], [float(row["dice"]) for row in loose], atol=0.01)
    files = f"['{TRAIN}','{EVALUATE}','{AS_INFERENCE}']"
    result = bundle("evaluating", "--config_file", files, "--ckpt_path", weights, "--threshold", 2)
    assert result.returncode
    assert "threshold 2" in result.stderr.splitlines()[-1]
