"""Scans are told from what lies beside them on shared disks, by kind and ending, not by what is in their names."""

import os
from pathlib import Path

import pytest
from conftest import write

from scripts.data.volume_files import count, stem, volumes_below, why_no_scan, why_no_volume


@pytest.mark.parametrize(
    "name",
    ["a.nii", "a.nii.gz", "A.NII.GZ", "sub-1_desc-masked_T2w.nii.gz", "P1_T2_masked.nii", "lesion.nii", "a b.nii"],
)
def test_what_has_the_ending_is_a_scan_whatever_else_is_in_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert why_no_scan(tmp_path / name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a.nii.gz.part", "*.nii* with another ending"),
        ("a.nii.gz.dvc", "*.nii* with another ending"),
        ("a.nii.gz:Zone.Identifier", "*.nii* with another ending"),
        ("._a.nii.gz", "hidden"),
        ("a.img", "*.img (another format, convert to .nii.gz)"),
        ("a_mask.nii.gz", "*_mask"),
        ("a_desc-lesion_probseg.nii.gz", "*_probseg"),
        ("dseg.nii", "*_dseg"),
        ("notes.txt", ""),
        ("a.json", ""),
    ],
)
def test_what_is_none_says_why(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).touch()
    assert why_no_scan(tmp_path / name) == why


def test_only_folders_that_nobody_named_tell_against_a_scan(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    assert why_no_scan(path, ["sub-1", "labelsTr"]) == "in labelsTr"
    assert why_no_scan(path, ["sourcedata"]) == "in sourcedata"
    assert why_no_scan(path, ["labels_of_a_study", "my derivatives"]) is None


def test_pipes_and_folders_are_no_volumes_and_dangling_links_are_told_by_who_reads_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "link.nii").symlink_to("gone")
    assert why_no_volume(tmp_path / "pipe.nii") == "no regular file"
    assert why_no_volume(tmp_path / "folder.nii.gz") == "folder folder.nii.gz"
    assert why_no_volume(tmp_path / "link.nii") is None


def test_links_are_followed_but_not_round_in_circles(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path / "store" / "x" / "t2.nii")
    (tmp_path / "study").mkdir()
    for name, target in (("sub-1", "../store/x"), ("sub-2", "../store/x"), ("all", "."), ("up", "..")):
        (tmp_path / "study" / name).symlink_to(target)
    (tmp_path / "store" / "x" / "back").symlink_to(tmp_path / "study")
    found = {str(p.relative_to(tmp_path / "study")) for p in volumes_below(tmp_path / "study")}
    assert {"sub-1/t2.nii", "sub-2/t2.nii"} <= found
    assert len(found) <= 4
    assert capsys.readouterr().out == ""


def test_a_path_that_is_not_utf_8_is_counted(
    folder_in_latin_1: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write(folder_in_latin_1 / "t2.nii")
    assert volumes_below(tmp_path) == []
    assert capsys.readouterr().out == f"Not taken of {tmp_path}: 1 whose path is not UTF-8 (rename it)\n"


def test_reasons_are_counted() -> None:
    assert count(["hidden", None, "", "in derivatives", "hidden"]) == "2 hidden, 1 in derivatives"
    assert count([None, ""]) == ""


def test_the_stem_is_what_stands_before_the_ending_in_any_case() -> None:
    assert [stem(name) for name in ("a.NII.GZ", "a.b.nii", "a.nii.txt")] == ["a", "a.b", "a.nii.txt"]
