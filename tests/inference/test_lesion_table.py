"""The table holds every mask of this bundle, and no formula."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
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


def test_a_deleted_mask_loses_its_row_and_the_last_one_leaves_an_empty_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sidecar(tmp_path, name, Sources=[f"bids:raw:{name}_T2w.nii.gz"])
    write_table(tmp_path)
    for name, left in (("a", ["b_desc-lesion_mask.nii.gz"]), ("b", [])):
        (tmp_path / f"{name}_desc-lesion_mask.nii.gz").unlink()
        write_table(tmp_path)
        assert [row["mask"] for row in rows(tmp_path)] == left


def test_a_mask_that_was_changed_by_hand_is_measured_and_says_so(tmp_path: Path) -> None:
    """Against what one counts: 3 + 1 voxels of 2x2x3 mm, of which three lie left of the head's middle."""
    sidecar(tmp_path, "a", Sources=["bids:raw:a_T2w.nii.gz"], Lesions={**LESIONS, "midline": 11.0, "quality": 0.8})
    mask = np.zeros((24, 30, 20), np.uint8)
    mask[1:4, 3, 3] = mask[20, 3, 3] = 1
    write(tmp_path / "a_desc-lesion_mask.nii.gz", mask)
    sidecar(tmp_path, "b", Sources=["bids:raw:b_T2w.nii.gz"])
    write_table(tmp_path)
    changed, kept = rows(tmp_path)
    numbers = [float(changed[key]) for key in ("lesion_volume", "lesions", "left_volume", "right_volume", "laterality")]
    assert numbers == [48, 2, 36, 12, 0.5]
    assert (changed["changed_by_hand"], changed["quality"]) == ("true", "n/a")
    assert (kept["changed_by_hand"], float(kept["lesion_volume"])) == ("false", 12.5)


def test_of_an_old_sidecar_the_sides_of_a_changed_mask_are_not_known(tmp_path: Path) -> None:
    sidecar(tmp_path, "a", Sources=["bids:raw:a_T2w.nii.gz"])
    write(tmp_path / "a_desc-lesion_mask.nii.gz", 1 - lesion())
    write_table(tmp_path)
    (row,) = rows(tmp_path)
    assert float(row["lesion_volume"]) == (24 * 30 * 20 - 64) * 12
    assert (row["left_volume"], row["right_volume"], row["laterality"]) == ("n/a", "n/a", "n/a")


def test_a_changed_mask_that_cannot_be_read_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        sidecar(tmp_path, name, Sources=[f"bids:raw:{name}_T2w.nii.gz"])
    (tmp_path / "a_desc-lesion_mask.nii.gz").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        write_table(tmp_path)
    assert [row["mask"] for row in rows(tmp_path)] == ["b_desc-lesion_mask.nii.gz"]
    assert caplog.messages[0].startswith(f"{tmp_path}/a_desc-lesion_mask.nii.gz: ")


def test_a_row_says_what_made_its_mask(tmp_path: Path) -> None:
    by = {**OURS[0], "Weights": ["a.pt", "b.pt"], "WeightsSHA256": ["1234567890", "abcdefghij"], "Device": "cuda:0",
          "Precision": "float16", "Settings": {"threshold": 0.85, "min_volume": 1000}}  # fmt: skip
    sidecar(tmp_path, "a", Sources=["bids:raw:a_T2w.nii.gz"], GeneratedBy=[by])
    sidecar(tmp_path, "old", Source={"Path": "/data/old_T2w.nii.gz"})
    write_table(tmp_path)
    new, old = rows(tmp_path)
    keys = ("weights", "threshold", "min_volume", "device", "precision")
    assert [new[key] for key in keys] == ["a.pt (12345678), b.pt (abcdefgh)", "0.85", "1000.0", "cuda:0", "float16"]
    assert [old[key] for key in keys] == ["n/a"] * 5
    assert {*json.loads((tmp_path / "lesions.json").read_text())} == {*new} - {"mask", "scan"}


def test_two_masks_of_one_scan_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As where an older version put those of a part of the dataset elsewhere."""
    for place in ("anat/sub-1", "sub-1/anat/sub-1"):
        sidecar(tmp_path, place, Sources=["bids:raw:sub-1/anat/sub-1_T2w.nii.gz"])
    with caplog.at_level(logging.WARNING):
        write_table(tmp_path)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path}: bids:raw:sub-1/anat/sub-1_T2w.nii.gz has 2 masks; ")


def test_a_mask_in_another_space_has_no_row_unless_the_scan_was_there(tmp_path: Path) -> None:
    for name in ("a", "a_space-MNI152NLin2009cAsym", "b_space-T1w"):
        sidecar(tmp_path, name, Sources=[f"bids:raw:{name}_T2w.nii.gz"])
    write_table(tmp_path)
    assert [row["mask"] for row in rows(tmp_path)] == [
        f"{name}_desc-lesion_mask.nii.gz" for name in ("a", "b_space-T1w")
    ]
