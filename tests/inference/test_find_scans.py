"""Scans are found where a user says they are."""

from pathlib import Path

import pytest
from conftest import lesion, write

from scripts.common.errors import InputError
from scripts.inference.find_scans import find_scans, root_of


def found(input: str) -> list[str]:
    return [Path(s["image"]).name for s in find_scans(input)]


def test_a_file_a_glob_and_a_folder_are_inputs(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.nii", "c/d.nii.gz"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert found(str(tmp_path / "a.nii")) == ["a.nii"]
    assert found(str(tmp_path / "*.nii.gz")) == ["b.nii.gz"]
    assert found(str(tmp_path)) == ["a.nii", "b.nii.gz", "d.nii.gz"]


def test_of_a_bids_folder_only_the_t2w_scans_are_taken(tmp_path: Path) -> None:
    for name in ("sub-1_T2w", "sub-1_T1w", "derivatives/x/sub-1_T2w_desc-lesion_mask", "derivatives/x/sub-1_T2w"):
        write(tmp_path / f"{name}.nii.gz")
    assert found(str(tmp_path)) == ["sub-1_T2w.nii.gz"]


def test_a_derivatives_folder_that_is_asked_for_is_searched(tmp_path: Path) -> None:
    write(tmp_path / "derivatives" / "resampled" / "sub-1_T2w.nii.gz")
    assert found(str(tmp_path / "derivatives")) == ["sub-1_T2w.nii.gz"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    write(tmp_path / "scan[1].nii.gz")
    write(tmp_path / "scan1.nii.gz")
    assert found(str(tmp_path / "scan[1].nii.gz")) == ["scan[1].nii.gz"]


def test_paths_of_scans_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert find_scans("a.nii.gz") == find_scans(".") == [{"image": str(tmp_path / "a.nii.gz")}]


def test_masks_beside_scans_are_not_scans(tmp_path: Path) -> None:
    write(tmp_path / "t2.nii.gz")
    write(tmp_path / "t2_mask.nii.gz", lesion())
    for made in ("desc-lesion_probseg", "desc-uncertainty_probseg", "dseg"):
        write(tmp_path / f"t2_{made}.nii.gz", lesion())
    assert found(str(tmp_path)) == ["t2.nii.gz"]


def test_two_scans_that_would_give_one_mask_are_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "b.nii", "c/a.nii"):
        write(tmp_path / name)
    with pytest.raises(InputError, match=r"/a.nii.gz: its mask would have the name of that of a.nii$"):
        find_scans(str(tmp_path))
    for name in ("s.nii.gz", "s_T2w.nii.gz"):
        write(tmp_path / "d" / name)
    with pytest.raises(InputError, match=r"/s_T2w.nii.gz: its mask would have the name of that of s.nii.gz$"):
        find_scans(str(tmp_path / "d" / "*"))


def test_of_a_bids_dataset_without_t2w_nothing_is_taken_unasked(tmp_path: Path) -> None:
    for name in ("sub-1_T1w", "sub-2_ses-1_T1w", "sub-1_task-rest_sbref", "sub-1_T1w_desc-lesion_mask"):
        write(tmp_path / name.split("_")[0] / "anat" / f"{name}.nii.gz")
    with pytest.raises(InputError) as error:
        find_scans(str(tmp_path))
    message = str(error.value)
    assert message.startswith(f"--input {tmp_path}: a BIDS dataset without T2w scans, there are T1w (2), sbref (1); ")
    glob = message.split("--input ")[-1].strip("'")
    assert found(glob) == ["sub-1_T1w.nii.gz", "sub-2_ses-1_T1w.nii.gz"]


def test_a_dangling_link_is_found_to_be_reported_later(tmp_path: Path) -> None:
    (tmp_path / "sub-1_T2w.nii.gz").symlink_to(".git/annex/objects/gone")
    for input in (tmp_path, tmp_path / "sub-1_T2w.nii.gz", tmp_path / "*.nii.gz"):
        assert found(str(input)) == ["sub-1_T2w.nii.gz"]


@pytest.mark.parametrize("input", [None, ""])
def test_no_input_says_what_to_give(input: str | None) -> None:
    with pytest.raises(InputError, match="--input is missing: give a NIfTI file, a folder or a glob"):
        find_scans(input)


@pytest.mark.parametrize("input", ["", "missing.nii.gz", "nowhere", "*.nii"])
def test_an_input_without_scans_is_refused(tmp_path: Path, input: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    path = str(tmp_path / input)
    with pytest.raises(InputError, match=r"no NIfTI file \(\*.nii, \*.nii.gz\) there") as error:
        find_scans(path)
    assert str(error.value).startswith(f"--input {path}: ")


def test_outputs_keep_the_subfolders_that_scans_do_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x/1.nii.gz", "a/y/2.nii.gz"):
        write(tmp_path / name)
    assert root_of(str(tmp_path)) == str(tmp_path)
    assert root_of(str(tmp_path / "a" / "*" / "*.nii.gz")) == str(tmp_path / "a")
    assert root_of(str(tmp_path / "a" / "x" / "1.nii.gz")) == str(tmp_path / "a" / "x")
    assert root_of(None) == str(Path.cwd())


def test_the_shards_have_each_scan_once_and_may_be_empty(tmp_path: Path) -> None:
    names = [f"scan-{i:02}.nii.gz" for i in range(10)]
    for name in names:
        write(tmp_path / name)
    parts = [[Path(s["image"]).name for s in find_scans(str(tmp_path), f"{i}/4")] for i in range(1, 5)]
    assert parts[2] == ["scan-02.nii.gz", "scan-06.nii.gz"]
    assert sorted(name for part in parts for name in part) == names
    assert find_scans(str(tmp_path), "12/16") == []


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0", 0.5, True])
def test_a_shard_that_cannot_be_is_refused(tmp_path: Path, shard: object) -> None:
    write(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=f"^--shard {shard}: expected"):
        find_scans(str(tmp_path), shard)
