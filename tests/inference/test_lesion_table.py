"""The table holds every mask of this bundle, and no formula."""

import csv
import json
import logging
from pathlib import Path

import pandas
import pytest
from conftest import lesion, write

from scripts.common.files import sha256
from scripts.inference.lesion_table import write_table

OURS = [{"Name": "MeshNet stroke lesion segmentation"}]
LESIONS = {"lesion_volume": 12.5, "lesions": 1, "left_volume": 2.5, "right_volume": 10.0, "laterality": -0.6}


def sidecar(folder: Path, name: str, **content: object) -> None:
    path = folder / f"{name}_desc-lesion_mask.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    hashes = {"MaskSHA256": sha256(write(path.with_suffix(".nii.gz"), lesion()))}
    path.write_text(json.dumps({"GeneratedBy": OURS, "Lesions": LESIONS, **hashes, **content}))


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


def test_a_mask_that_comes_while_the_table_is_written_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sidecar(tmp_path, "mine", Sources=["bids:raw:mine_T2w.nii.gz"])
    write_csv = pandas.DataFrame.to_csv

    def another_comes(self: pandas.DataFrame, *args: object, **kwargs: object) -> None:
        sidecar(tmp_path, "theirs", Sources=["bids:raw:theirs_T2w.nii.gz"])
        write_csv(self, *args, **kwargs)

    monkeypatch.setattr(pandas.DataFrame, "to_csv", another_comes)
    write_table(tmp_path)
    assert len(rows(tmp_path)) == 2


def test_without_a_mask_there_is_no_table(tmp_path: Path) -> None:
    write_table(tmp_path)
    assert list(tmp_path.iterdir()) == []
