"""The folder is a BIDS derivative whose table holds every mask of this bundle, and no formula."""

import csv
import json
import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write

from scripts.inference.derivative import Derivative
from scripts.inference.lesion_table import write_table

OURS = [{"Name": "MeshNet stroke lesion segmentation"}]
LESIONS = {"lesion_volume": 12.5, "lesions": 1, "left_volume": 2.5, "right_volume": 10.0, "laterality": -0.6}


def sidecar(folder: Path, name: str, **content: object) -> None:
    path = folder / f"{name}_desc-lesion_mask.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"GeneratedBy": OURS, "Lesions": LESIONS, **content}))


def rows(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "lesions.tsv").open(), delimiter="\t"))


def test_sidecars_of_others_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sidecar(tmp_path, "sub-1/sub-1", Sources=["bids:raw:sub-1/sub-1_T2w.nii.gz"])
    sidecar(tmp_path, "old", Source={"Path": "/data/old_T2w.nii.gz"})  # as 0.4.0 wrote it
    foreign = tmp_path / "lst_desc-lesion_mask.json"
    foreign.write_text('{"Type": "Lesion"}')
    with caplog.at_level(logging.WARNING):
        write_table(tmp_path)
    assert caplog.messages == [f"{foreign}: not a sidecar of this bundle, so not in lesions.tsv"]
    assert [(row["mask"], row["scan"]) for row in rows(tmp_path)] == [
        ("old_desc-lesion_mask.nii.gz", "old_T2w.nii.gz"),
        ("sub-1/sub-1_desc-lesion_mask.nii.gz", "bids:raw:sub-1/sub-1_T2w.nii.gz"),
    ]
    assert foreign.read_text() == '{"Type": "Lesion"}'


def test_no_cell_is_a_formula_and_numbers_are_numbers(tmp_path: Path) -> None:
    names = ["=1+1", "+a", "-b", "@c", "\td"]
    for name in names:
        sidecar(tmp_path, name, Source={"Path": f"/data/{name}_T2w.nii.gz"})
    write_table(tmp_path)
    for row in rows(tmp_path):
        assert row["mask"].startswith("./")
        assert row["scan"].startswith("./")
        assert float(row["laterality"]) == -0.6
    assert {row["mask"] for row in rows(tmp_path)} == {f"./{name}_desc-lesion_mask.nii.gz" for name in names}


def test_without_a_mask_there_is_no_table(tmp_path: Path) -> None:
    write_table(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_raw_dataset_is_linked_by_a_relative_path(tmp_path: Path, weights: Path) -> None:
    raw, out = tmp_path / "bids", tmp_path / "bids" / "derivatives" / "meshnet"
    write(raw / "sub-1" / "anat" / "sub-1_T2w.nii.gz")
    (raw / "dataset_description.json").write_text("{}")
    Derivative(str(raw / "sub-1" / "anat"), str(out), str(weights), {}).write_description()
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert description["DatasetType"] == "derivative"


def test_a_bidsignore_that_is_there_stays(tmp_path: Path, weights: Path) -> None:
    derivative = Derivative(str(tmp_path), str(tmp_path / "out"), str(weights), {})
    derivative.write_description()
    assert "*_qc.png" in (tmp_path / "out" / ".bidsignore").read_text().splitlines()
    (tmp_path / "out" / ".bidsignore").write_text("mine\n")
    derivative.write_description()
    assert (tmp_path / "out" / ".bidsignore").read_text() == "mine\n"


VALIDATOR = shutil.which("bids-validator-deno")


@pytest.mark.skipif(VALIDATOR is None, reason="the BIDS validator is not here: pip install bids-validator-deno")
def test_the_official_validator_finds_no_error(segment: Callable, scans: Path) -> None:
    """Version 2 or later: version 1, which npm has, knows no derivatives and takes every mask for an unknown file."""
    out = scans / "derivatives" / "meshnet"
    segment(scans, out, qc=True, save_probability=True)
    command = [VALIDATOR, "--json", str(out)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=300).stdout)
    found = {issue["code"] for issue in report["issues"]["issues"]}
    recommended = {"README_FILE_MISSING", "TOO_FEW_AUTHORS", "SIDECAR_KEY_RECOMMENDED"}
    assert [i for i in report["issues"]["issues"] if i["severity"] == "error"] == []
    assert found <= recommended
    assert report["summary"]["subjects"] == ["1", "2"]
