"""configs/as_inference.json measures the masks that configs/inference.json writes, by the settings of the card."""

import csv
import json
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import pytest
import torch
from conftest import EVALUATE, INFERENCE, ROOT, TRAIN, bundle

from scripts.common.errors import describe

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


@pytest.fixture(scope="module")
def as_the_card(trained: dict, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The rows of metrics.csv."""
    summary, rows = evaluate(trained, weights, tmp_path_factory.mktemp("evaluated"))
    assert summary["settings"] == SETTINGS
    return rows


def run(trained: dict, weights: object, output: Path, **own: object) -> None:
    """What ``python -m monai.bundle run evaluating`` does, in this process."""
    arguments = dict(zip(*[iter(trained["arguments"])] * 2, strict=True))
    files, where = [TRAIN, EVALUATE, AS_INFERENCE], {"output_dir": str(output), "ckpt_path": str(weights)}
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
@pytest.mark.parametrize("own", [{"threshold": 0.9}, {"min_volume": 30_000}, {"flip_averaging": False}])
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
    with pytest.raises(RuntimeError) as error:
        run(trained, weights, tmp_path, threshold=2)
    assert "threshold 2" in describe(error.value).splitlines()[-1]
