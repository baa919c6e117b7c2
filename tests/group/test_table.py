"""Each row is its mask as it is now, counted again by hand, beside what participants.tsv says."""

import csv
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import write

from scripts.common.errors import InputError
from scripts.common.files import sha256
from scripts.group.table import LEGEND, rows_of, write_lesions

MAKER = {"Name": "MeshNet stroke lesion segmentation", "Weights": "a.pt", "WeightsSHA256": "0123456789abcdef"}
MAKER["Settings"] = {"threshold": 0.85, "min_volume": 1000}
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])  # 12 mm3; x falls with the first index
LESIONS = {"lesion_volume": 48.0, "lesions": 1, "left_volume": 48.0, "right_volume": 0.0, "laterality": 1.0}


def segmented(out: Path, name: str, *voxels: tuple[int, int, int], unusual: str | None = None) -> Path:
    """A mask of ``voxels`` and its sidecar, as inference writes them, for the scan of a name."""
    data = np.zeros((24, 30, 20), np.uint8)
    data[tuple(np.array(voxels).T)] = 1
    mask = write(out / f"{name}_desc-lesion_mask.nii.gz", data, AFFINE)
    sidecar = {"GeneratedBy": [MAKER], "Sources": [f"bids:raw:{name}_T2w.nii.gz"], "MaskSHA256": sha256(mask)}
    sidecar["Lesions"] = {**LESIONS, "quality": 0.9, "unusual": unusual, "midline": -23.0}
    mask.with_name(mask.name.replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    return mask


FOUR = [(3, 3, 3), (3, 3, 4), (20, 3, 3), (20, 4, 4)]  # two parts, one on each side of x = -23


def participants(folder: Path, text: str) -> Path:
    path = folder / "participants.tsv"
    path.write_text(text, encoding="utf-8-sig", newline="")
    return path


def test_a_row_is_the_mask_that_is_there_now(tmp_path: Path) -> None:
    """Against what one counts in the files; of a mask changed by hand the predictions' agreement is not known."""
    name = "sub-01/ses-2/anat/sub-01_ses-2_acq-spc3_run-1"
    mask = segmented(tmp_path, name, (3, 3, 3), unusual="detail -0.4")
    mask.with_name("sub-01_ses-2_acq-spc3_run-1_desc-lesion_qc.png").write_bytes(b"")
    (first,) = rows_of(tmp_path, None)
    assert (first["lesion_volume"], first["changed_by_hand"], first["quality"]) == (48.0, "false", 0.9)
    segmented(tmp_path / "other", name, *FOUR)
    mask.write_bytes((tmp_path / "other" / mask.relative_to(tmp_path)).read_bytes())
    (tmp_path / "other").rename(tmp_path.with_name(f"{tmp_path.name}-other"))
    (row,) = rows_of(tmp_path, None)
    indices = np.argwhere(nib.load(mask).get_fdata())
    left = sum(-2 * i < -23 for i, _, _ in indices)
    assert row == {
        "participant_id": "sub-01",
        "session_id": "ses-2",
        "acq": "spc3",
        "run": "1",
        "lesion_volume": 12.0 * len(indices),
        "lesions": 2,
        "left_volume": 12.0 * left,
        "right_volume": 12.0 * (len(indices) - left),
        "laterality": 0.0,
        "quality": None,
        "unusual": "detail -0.4",
        "changed_by_hand": "true",
        "weights": "a.pt (01234567)",
        "threshold": 0.85,
        "min_volume": 1000,
        "decision": None,
        "note": None,
        "mask": f"{name}_desc-lesion_mask.nii.gz",
        "picture": f"{name}_desc-lesion_qc.png",
        "scan": f"bids:raw:{name}_T2w.nii.gz",
    }


def test_what_names_do_not_say_is_not_known(tmp_path: Path) -> None:
    segmented(tmp_path, "t2", *FOUR)
    (row,) = rows_of(tmp_path, None)
    assert [row[key] for key in ("participant_id", "session_id", "acq", "run", "picture")] == [None] * 5


def test_participants_are_joined_by_their_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With and without "sub-", texts as they stand there; none is dropped, and no column is overwritten."""
    for label in ("01", "1", "002", "3"):
        segmented(tmp_path, f"sub-{label}/anat/sub-{label}", *FOUR)
    text = "participant_id\tage\tquality\r\nsub-01\t61.50\tgood\r\n002\tn/a\t\r\nsub-1\t07\tn/a\r\nsub-9\t1\t1\r\n"
    with caplog.at_level(logging.WARNING):
        rows = rows_of(tmp_path, participants(tmp_path, text))
    assert {row["participant_id"]: (row["age"], row["participants_quality"], row["quality"]) for row in rows} == {
        "sub-01": ("61.50", "good", 0.9),
        "sub-1": ("07", None, 0.9),
        "sub-002": (None, None, 0.9),
        "sub-3": (None, None, 0.9),
    }
    assert caplog.messages == [f"{tmp_path / 'participants.tsv'}: has no row for sub-3"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("subject\tage\nsub-01\t1\n", "no column participant_id; it has: subject, age"),
        ("participant_id\tage\nsub-01\t1\n01\t2\n", "sub-01: more than one row; keep one, as a join needs"),
        ("", "cannot be read (No columns to parse from file); repair or move it"),
    ],
)
def test_participants_that_cannot_be_joined_are_a_line(tmp_path: Path, text: str, problem: str) -> None:
    path = participants(tmp_path, text)
    with pytest.raises(InputError) as error:
        rows_of(tmp_path, path)
    assert str(error.value) == f"{path}: {problem}"


def test_decisions_are_those_of_masks_that_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mask = segmented(tmp_path, "sub-1/sub-1", *FOUR).relative_to(tmp_path)
    path = tmp_path / "group" / "decisions.tsv"
    path.parent.mkdir()
    path.write_text(f"mask\tdecision\tnote\n{mask}\treject\tmotion\nsub-2/sub-2_mask.nii.gz\taccept\t\n")
    with caplog.at_level(logging.WARNING):
        (row,) = rows_of(tmp_path, None)
    assert (row["decision"], row["note"]) == ("reject", "motion")
    assert caplog.messages == [f"{path}: sub-2/sub-2_mask.nii.gz: there is no such mask; its decision is not used"]


def test_the_table_and_its_legend_have_the_same_columns(tmp_path: Path) -> None:
    segmented(tmp_path, "sub-1/sub-1", *FOUR)
    path = participants(tmp_path, "participant_id\tage\nsub-1\t61\n")
    path.with_suffix(".json").write_text('{"age": {"Description": "Age", "Units": "years"}}')
    table = write_lesions(tmp_path, rows_of(tmp_path, path), path)
    assert table == tmp_path / "group" / "lesions.tsv"
    with table.open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    legend = json.loads(table.with_suffix(".json").read_text())
    assert [*row] == [*legend] == [*LEGEND, "age"]
    assert legend["age"] == {"Description": "Age", "Units": "years"}
    assert all("Description" in column for column in legend.values())
    assert (row["participant_id"], row["session_id"], row["age"], row["picture"]) == ("sub-1", "n/a", "61", "n/a")


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    table = write_lesions(tmp_path, [], None)
    assert table.read_text() == "\t".join(LEGEND) + "\n"
