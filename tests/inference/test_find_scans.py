"""Scans are found where a user says they are, and their outputs have one place however they are asked for."""

import gzip
from pathlib import Path

import pytest
from conftest import lesion, write

from scripts.common.errors import InputError
from scripts.inference.derivative import MASK, Derivative
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
    what = (
        "no such file or folder" if input in ("missing.nii.gz", "nowhere") else "no NIfTI file (*.nii, *.nii.gz) there"
    )
    with pytest.raises(InputError) as error:
        find_scans(path)
    assert str(error.value).startswith(f"--input {path}: {what}")


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


def test_scans_are_selected_by_their_entities(tmp_path: Path) -> None:
    """Of two values of an entity either, of two entities both; whichever part of the dataset is given."""
    names = [
        "sub-1/anat/sub-1_acq-a_run-1",
        "sub-1/anat/sub-1_acq-a_run-2",
        "sub-1/anat/sub-1_acq-b",
        "sub-2/anat/sub-2",
    ]
    for name in names:
        write(tmp_path / "acq-a study" / f"{name}_T2w.nii.gz")

    def selected(*select: str, input: str = "") -> list[str]:
        scans = find_scans(str(tmp_path / "acq-a study" / input), None, select)
        return [Path(scan["image"]).name.removesuffix("_T2w.nii.gz") for scan in scans]

    assert selected() == [Path(name).name for name in names]
    assert selected("acq-a") == ["sub-1_acq-a_run-1", "sub-1_acq-a_run-2"]
    assert selected("acq-a", "acq-b", "run-2") == ["sub-1_acq-a_run-2"]
    assert selected("sub-2") == ["sub-2"]
    assert selected("sub-1", "acq-b", input="sub-1") == ["sub-1_acq-b"]


@pytest.mark.parametrize(
    ("select", "problem"),
    [
        (["acq-spc"], "acq-spc: none of the 2 scans has it; they have acq-spc3"),
        (["spc3"], "spc3: none of the 2 scans has it; expected an entity of them, like acq-spc3"),
        (["acq-spc3", "sub-2"], "acq-spc3 sub-2: none of the 2 scans has all of it"),
    ],
)
def test_a_selection_that_no_scan_has_is_a_line(tmp_path: Path, select: list[str], problem: str) -> None:
    for name in ("sub-1/sub-1_acq-spc3", "sub-2/sub-2"):
        write(tmp_path / f"{name}_T2w.nii.gz")
    with pytest.raises(InputError) as error:
        find_scans(str(tmp_path), None, select)
    assert str(error.value) == f"--select {problem}"


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/0", 0.5, True])
def test_a_shard_that_cannot_be_is_refused(tmp_path: Path, shard: object) -> None:
    write(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=f"^--shard {shard}: expected"):
        find_scans(str(tmp_path), shard)


def layout(input: Path | str, out: Path, weights: Path) -> set[str]:
    """Where the masks of an input would lie."""
    derivative = Derivative(root_of(str(input)), str(out), [str(weights)], {})
    scans = find_scans(str(input))
    return {str(derivative.path(scan["image"], MASK).relative_to(out)) for scan in scans}


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(
    "input",
    ["", "sub-1", "sub-1/ses-1/anat", "sub-1/ses-1/anat/sub-1_ses-1_T2w.nii.gz", "sub-*/ses-1/anat/*_T2w.nii.gz",
     "**/*_T2w.nii*", "sub-1/ses-*/*/*.nii.gz", "sub-[1]", "../bids/sub-1", "./sub-1/"],
)  # fmt: skip
def test_a_part_of_a_dataset_has_its_masks_where_the_whole_has_them(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, described: bool, input: str
) -> None:
    root, out = tmp_path / "bids", tmp_path / "out"
    for name in ("1", "2"):
        write(root / f"sub-{name}" / "ses-1" / "anat" / f"sub-{name}_ses-1_T2w.nii.gz")
    if described:
        (root / "dataset_description.json").write_text("{}")
    monkeypatch.chdir(root)
    whole = {f"sub-{n}/ses-1/anat/sub-{n}_ses-1_desc-lesion_mask.nii.gz" for n in (1, 2)}
    for given in (f"{root}/{input}", input or "."):
        found = layout(given, out, weights)
        assert found == (whole if "*_T2w" in input or not input else {p for p in whole if "sub-1" in p})


def test_the_description_of_a_derivative_counts_only_within_it(tmp_path: Path) -> None:
    inner = tmp_path / "bids" / "derivatives" / "resampled"
    write(inner / "sub-1" / "sub-1_T2w.nii.gz")
    for folder in (tmp_path / "bids", inner):
        (folder / "dataset_description.json").write_text("{}")
    assert root_of(str(inner / "sub-1")) == str(inner)
    assert root_of(str(inner.parent)) == str(tmp_path / "bids")
    assert root_of(str(tmp_path / "bids" / "derivatives" / "*" / "*" / "*.nii.gz")) == str(tmp_path / "bids")


def test_a_glob_gives_one_layout_however_many_files_match(tmp_path: Path) -> None:
    write(tmp_path / "alice" / "T2.nii.gz")
    assert root_of(str(tmp_path / "*" / "T2.nii.gz")) == str(tmp_path)
    write(tmp_path / "bob" / "T2.nii.gz")
    assert root_of(str(tmp_path / "*" / "T2.nii.gz")) == str(tmp_path)


def test_what_is_named_masked_or_ends_in_capitals_is_found(tmp_path: Path) -> None:
    for name in ("P01_T2.nii.gz", "P02_T2_masked.nii.gz"):
        write(tmp_path / name)
    (tmp_path / "P03_T2.NII.GZ").write_bytes(gzip.compress((tmp_path / "P01_T2.nii.gz").read_bytes()))
    assert found(str(tmp_path)) == ["P01_T2.nii.gz", "P02_T2_masked.nii.gz", "P03_T2.NII.GZ"]
    for n in (101, 102):
        write(tmp_path / "valdo" / f"sub-{n}_space-T2S_desc-masked_T2.nii.gz")
    assert len(found(str(tmp_path / "valdo"))) == 2
    write(tmp_path / "bids" / "sub-1_desc-masked_T2w.nii.gz")
    write(tmp_path / "bids" / "sub-1_T1w.nii.gz")
    assert found(str(tmp_path / "bids")) == ["sub-1_desc-masked_T2w.nii.gz"]


def test_subjects_that_are_links_are_found(tmp_path: Path) -> None:
    write(tmp_path / "store" / "anat" / "sub-1_T2w.nii.gz")
    (tmp_path / "bids").mkdir()
    (tmp_path / "bids" / "sub-1").symlink_to(tmp_path / "store")
    assert find_scans(str(tmp_path / "bids")) == [{"image": str(tmp_path / "bids/sub-1/anat/sub-1_T2w.nii.gz")}]


def test_what_is_not_taken_is_counted_in_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("sub-1/anat", "derivatives/x", "sourcedata", ".Trash-1000/files", ".snapshot/1", "labelsTr"):
        write(tmp_path / folder / "sub-1_T2w.nii.gz")
    (tmp_path / "sub-1/anat/@eaDir/sub-1_T2w.nii.gz").mkdir(parents=True)
    for name in ("._sub-1_T2w.nii.gz", "sub-1_T2w.nii.gz.part", "sub-1_T2w.nii.gz.dvc", "sub-1_T2w.json"):
        (tmp_path / "sub-1/anat" / name).touch()
    write(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz")
    with caplog.at_level("INFO", "meshnet"):
        scans = find_scans(str(tmp_path))
    assert scans == [{"image": str(tmp_path / "sub-1/anat/sub-1_T2w.nii.gz")}]
    (line,) = caplog.messages
    assert line.startswith(f"Not taken of --input {tmp_path}: ")
    assert {*line.split(": ")[1].split(", ")} == {
        "2 *.nii* with another ending", "1 hidden", "1 in derivatives", "1 in sourcedata", "1 in labelsTr",
        "1 folder .Trash-1000", "1 folder .snapshot", "1 folder @eaDir", "1 without _T2w at the end of the name",
    }  # fmt: skip


def test_a_glob_takes_no_more_than_a_folder_but_what_it_names(tmp_path: Path) -> None:
    write(tmp_path / "labelsTr" / "a.nii.gz")
    write(tmp_path / "imagesTr" / "a.nii.gz")
    (tmp_path / "imagesTr" / "a.nii.gz.part").touch()
    assert [s["image"] for s in find_scans(str(tmp_path / "*" / "*.nii*"))] == [str(tmp_path / "imagesTr/a.nii.gz")]
    assert found(str(tmp_path / "labelsTr" / "*.nii*")) == ["a.nii.gz"]
    assert found(str(tmp_path / "imagesT?")) == ["a.nii.gz"]


def test_a_path_that_is_not_utf_8_is_a_line(folder_in_latin_1: Path, tmp_path: Path) -> None:
    write(folder_in_latin_1 / "t2.nii")
    with pytest.raises(InputError, match=r"1 whose path is not UTF-8 \(rename it\)$"):
        find_scans(str(tmp_path))
    with pytest.raises(InputError, match=r"t2.nii: its path is not UTF-8; rename it$"):
        find_scans(f"{folder_in_latin_1}/t2.nii")
