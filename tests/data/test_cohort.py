"""A cohort is split as its datalist says; a fold or a scan that is not there is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from scripts.common.errors import InputError
from scripts.data.cohort import load_cohort
from tests.data.conftest import datalist


def load(
    root: Path, content: dict, fold: object = 0, inner_fold: object = 0, check: tuple = ()
) -> dict[str, list[int]]:
    (root / "datalist.json").write_text(json.dumps(content))
    cohort = load_cohort(str(root), str(root / "datalist.json"), fold, inner_fold, check)
    return {name: [int(s["subject"]) for s in getattr(cohort, name)] for name in ("training", "validation", "test")}


@pytest.mark.parametrize(
    ("fold", "inner_fold", "expected"),
    [
        (0, 0, {"training": [4, 5, 7, 8], "validation": [3, 6], "test": [0, 1, 2]}),
        (1, 2, {"training": [0, 1, 6, 7], "validation": [2, 8], "test": [3, 4, 5]}),
        (2, None, {"training": [0, 1, 2, 3, 4, 5], "validation": [], "test": [6, 7, 8]}),
        (2, "none", {"training": [0, 1, 2, 3, 4, 5], "validation": [], "test": [6, 7, 8]}),
        (2, "null", {"training": [0, 1, 2, 3, 4, 5], "validation": [], "test": [6, 7, 8]}),
        (2, "None", {"training": [0, 1, 2, 3, 4, 5], "validation": [], "test": [6, 7, 8]}),
        (2, "NULL", {"training": [0, 1, 2, 3, 4, 5], "validation": [], "test": [6, 7, 8]}),
    ],
)
def test_split(tmp_path: Path, fold: int, inner_fold: object, expected: dict) -> None:
    assert load(tmp_path, datalist(), fold, inner_fold) == expected


def test_every_scan_is_tested_once_and_validated_once_in_each_other_fold(tmp_path: Path) -> None:
    everyone = list(range(9))
    tested = []
    for fold in range(3):
        parts = [load(tmp_path, datalist(), fold, inner) for inner in range(3)]
        for part in parts:
            assert sorted([*part["training"], *part["validation"], *part["test"]]) == everyone
        assert parts[0]["test"] == parts[1]["test"] == parts[2]["test"]
        validated = [subject for part in parts for subject in part["validation"]]
        assert sorted([*validated, *parts[0]["test"]]) == everyone
        tested += parts[0]["test"]
    assert sorted(tested) == everyone


def test_paths_start_at_the_datasets_folder_wherever_the_datalist_is(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "mine.json"
    path.write_text(json.dumps(datalist()))
    cohort = load_cohort(str(tmp_path), str(path), 0, 0, ())
    assert cohort.test[0]["image"] == str(tmp_path / "sub-0.nii.gz")
    assert (cohort.spacing, cohort.spatial_size, cohort.name) == ((1.0, 1.0, 1.0), (256, 256, 256), "nine")


@pytest.mark.parametrize(
    ("fold", "inner_fold", "line"),
    [
        (3, 0, "fold 3: this cohort has folds 0 to 2"),
        (-1, 0, "fold -1: this cohort has folds 0 to 2"),
        ("1", 0, "fold 1: this cohort has folds 0 to 2"),
        (True, 0, "fold True: this cohort has folds 0 to 2"),
        (0.0, 0, "fold 0.0: this cohort has folds 0 to 2"),
        (0, 3, "inner_fold 3: this cohort has inner_folds 0 to 2"),
        (0, "all", "inner_fold all: this cohort has inner_folds 0 to 2"),
        (0, -1, "inner_fold -1: this cohort has inner_folds 0 to 2"),
        (0, "0", "inner_fold 0: this cohort has inner_folds 0 to 2"),
        (0, False, "inner_fold False: this cohort has inner_folds 0 to 2"),
        (0, 1.0, "inner_fold 1.0: this cohort has inner_folds 0 to 2"),
        (None, 0, "fold None: this cohort has folds 0 to 2"),
    ],
)
def test_a_fold_that_is_not_there_is_refused(tmp_path: Path, fold: object, inner_fold: object, line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}$"):
        load(tmp_path, datalist(), fold, inner_fold)


def test_missing_folder_and_missing_datalist_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^dataset_dir /nowhere: no such folder$"):
        load_cohort("/nowhere", "/nowhere/datalist.json", 0, 0)
    with pytest.raises(
        InputError, match=r"datalist.json: no such file; write it with `python scripts/prepare_datalist"
    ):
        load_cohort(str(tmp_path), str(tmp_path / "datalist.json"), 0, 0)


def test_only_the_subsets_asked_for_are_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:  # none of the files exists
        load(tmp_path, datalist(), check=("test",))
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        str(tmp_path / f"sub-{i}{which}.nii.gz") for i in (0, 1, 2) for which in ("", "_mask")
    ]


@pytest.fixture
def nine(tmp_path: Path) -> Path:
    """The scans and masks of ``datalist()``; the mask of subject 4 is empty."""
    for i in range(9):
        mask = np.zeros((4, 4, 4), np.uint8)
        mask[0] = i != 4
        for name, data in ((f"sub-{i}", i + np.arange(64.0).reshape(4, 4, 4)), (f"sub-{i}_mask", mask)):
            nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return tmp_path


def test_an_empty_mask_is_refused_where_it_would_be_trained_on_only(nine: Path) -> None:
    everything = ("training", "validation", "test")
    for fold, inner_fold in ((0, 1), (1, 0)):  # subject 4 validates, then tests
        assert 4 not in load(nine, datalist(), fold, inner_fold, everything)["training"]
    with pytest.raises(InputError, match=r"sub-4_mask.nii.gz: empty lesion mask in the training set"):
        load(nine, datalist(), 0, 0, everything)


def seen(
    root: Path, content: dict, fold: int, inner_fold: int | None, check: tuple = ("training", "validation")
) -> set:
    (root / "datalist.json").write_text(json.dumps(content))
    return set(load_cohort(str(root), str(root / "datalist.json"), fold, inner_fold, check).seen)


def test_what_weights_have_seen_is_known_by_content_whatever_folds_and_folders_are_called(nine: Path) -> None:
    digests = [hashlib.sha256((nine / f"sub-{i}.nii.gz").read_bytes()).hexdigest()[:16] for i in range(9)]
    assert seen(nine, datalist(), 0, 1) == {*digests[3:]}
    assert seen(nine, datalist(), 2, None, ("test",)) == set()
    shutil.copytree(nine, nine / "copy")
    reshuffled = {**datalist(), "training": datalist()["training"]}
    for i, scan in enumerate(reshuffled["training"]):  # every subject moves on to the next outer fold
        scan["fold"] = (i // 3 + 1) % 3
        scan["inner_folds"] = [None if outer == scan["fold"] else i % 3 for outer in range(3)]
    # The same name and fold number, but subjects 0 to 2 have been trained on.
    assert seen(nine / "copy", reshuffled, 0, 1) == {*digests[:6]}


@pytest.mark.parametrize(
    ("fold", "inner_fold", "check", "line"),
    [
        (0, 1, ("training", "validation"), "no training scan for fold 0, inner_fold 1"),
        (1, 2, ("training", "validation"), "no validation scan for fold 1, inner_fold 2"),
        (2, 0, ("test",), "no test scan for fold 2, inner_fold 0"),
    ],
)
def test_a_fold_without_scans_is_refused(nine: Path, fold: int, inner_fold: int, check: tuple, line: str) -> None:
    content = datalist()
    content["training"] = content["training"][:2] + content["training"][4:5]  # folds 0, 0 and 1
    (nine / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"^{nine}/datalist.json: {line}; choose other folds$"):
        load_cohort(str(nine), str(nine / "datalist.json"), fold, inner_fold, check)


def test_a_cohort_that_is_only_tested_on_needs_no_training_scans(nine: Path) -> None:
    content = datalist()
    content["training"] = content["training"][:3]
    assert load(nine, content, 0, 0, ("test",))["test"] == [0, 1, 2]


def test_scans_outside_the_datasets_folder_can_be_listed(nine: Path) -> None:
    content, inside = datalist(), nine / "inside"
    inside.mkdir()
    for i, scan in enumerate(content["training"]):
        scan["image"], scan["label"] = f"../sub-{i}.nii.gz", str(nine / f"sub-{i}_mask.nii.gz")
    assert load(inside, content, 0, 1, ("test",))["test"] == [0, 1, 2]


def test_a_scan_is_there_once_for_each_contrast_that_is_asked_for_and_it_has(
    nine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = datalist()
    content["training"][3]["contrasts"] = {"T2w": "sub-3.nii.gz", "T1w": "sub-3_T1w.nii.gz"}
    volume = np.arange(64.0)[::-1].reshape(4, 4, 4)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), nine / "sub-3_T1w.nii.gz")
    path = nine / "datalist.json"
    path.write_text(json.dumps(content))

    def validation(*contrasts: str) -> list[tuple]:
        cohort = load_cohort(str(nine), str(path), 0, 0, ("validation",), contrasts)
        assert cohort.fingerprint not in fingerprints
        fingerprints.add(cohort.fingerprint)
        return [(Path(scan["image"]).name, scan.get("contrast")) for scan in cohort.validation]

    fingerprints: set[str] = set()
    assert validation() == [("sub-3.nii.gz", None), ("sub-6.nii.gz", None)]
    bare = ("sub-6.nii.gz", None)
    assert validation("T1w", "T2w", "FLAIR") == [("sub-3_T1w.nii.gz", "T1w"), ("sub-3.nii.gz", "T2w"), bare]
    assert "8 of 9 scans name no contrasts: used as they are" in caplog.text
    assert validation("T1w") == [("sub-3_T1w.nii.gz", "T1w"), bare]
    assert validation("FLAIR") == [bare]
    assert "1 of 9 scans have none of FLAIR: left out" in caplog.text

    nib.save(nib.Nifti1Image(volume[1:], np.eye(4)), nine / "sub-3_T1w.nii.gz")
    with pytest.raises(InputError, match=r"sub-3_mask.nii.gz: shape .*, but its image has \(3, 4, 4\): .*_T1w"):
        validation("T1w", "T2w")


def test_weights_know_every_contrast_that_they_have_seen(contrast_dir: Path) -> None:
    cohort = load_cohort(str(contrast_dir), str(contrast_dir / "datalist.json"), 0, None, ("training",), ["T1w", "T2w"])
    assert len(cohort.seen) == len(cohort.training) == 12


def test_balanced_weights_are_those_of_scikit_learn_for_the_voxels_of_all_masks(cohort_dir: Path) -> None:
    cohort = load_cohort(str(cohort_dir), str(cohort_dir / "datalist.json"), 0, 0)
    voxels = [np.arange(100**3) < round(scan["lesion_volume"]) for scan in cohort.training]  # of 1 mm
    expected = compute_class_weight("balanced", classes=np.array([False, True]), y=np.concatenate(voxels))
    assert cohort.balanced_weights([1.0] * 3, [100] * 3) == pytest.approx(expected, rel=1e-4)
    volume = np.mean([scan["lesion_volume"] for scan in cohort.training])
    assert cohort.balanced_weights([8.0] * 3, [32] * 3)[1] == pytest.approx((8.0 * 32) ** 3 / volume / 2)
