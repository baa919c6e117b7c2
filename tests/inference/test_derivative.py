"""Outputs have BIDS names beside their scans' folders; a mask counts as done only if all that made it is the same."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from conftest import write

from scripts.common.errors import InputError
from scripts.common.files import sha256
from scripts.inference import derivative
from scripts.inference.derivative import MASK, PICTURE, Derivative, read_ours, refuse_other_dataset
from scripts.inference.find_scans import root_of

FILES = {MASK: b"mask", PICTURE: b"picture"}
SIDECAR = "desc-lesion_mask.json"


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("sub-1/ses-2/anat/sub-1_ses-2_acq-spc3_T2w.nii.gz", "sub-1_ses-2_acq-spc3_desc-lesion_mask.nii.gz"),
        ("t2.nii", "t2_desc-lesion_mask.nii.gz"),
        ("a.b/scan 1.nii.gz", "scan 1_desc-lesion_mask.nii.gz"),
    ],
)
def test_names_follow_bids(tmp_path: Path, weights: Path, scan: str, mask: str) -> None:
    ours = Derivative(str(tmp_path / "in"), str(tmp_path / "out"), [str(weights)], {})
    assert ours.path(str(tmp_path / "in" / scan), MASK) == tmp_path / "out" / Path(scan).parent / mask
    assert not (tmp_path / "out").exists()


class Folder:
    """A scan and the derivative of other settings or weights it is asked for."""

    def __init__(self, root: Path, weights: Path) -> None:
        self.root, self.weights = root, root / "model.pt"
        self.weights.write_bytes(weights.read_bytes())
        self.scan = str(write(root / "in" / "sub-1_T2w.nii.gz"))

    def derivative(self, threshold: float = 0.5) -> Derivative:
        root, out = root_of(str(self.root / "in")), str(self.root / "out")
        return Derivative(root, out, [str(self.weights)], {"threshold": threshold})

    def write(self, threshold: float = 0.5, files: dict = FILES) -> None:
        self.derivative(threshold).write(self.scan, sha256(Path(self.scan)), {}, files)

    def is_done(self, threshold: float = 0.5) -> bool:
        return self.derivative(threshold).is_done(self.scan, list(FILES))

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.root / "out").rglob("*") if p.is_file()}


@pytest.fixture
def folder(tmp_path: Path, weights: Path) -> Folder:
    return Folder(tmp_path, weights)


def test_other_settings_weights_or_a_changed_scan_are_done_again(folder: Folder) -> None:
    folder.write()
    assert folder.is_done()
    os.utime(folder.scan, (0, 0))
    assert folder.is_done()
    assert not folder.is_done(threshold=0.4)
    content = folder.weights.read_bytes()
    folder.weights.write_bytes(b"others")
    assert not folder.is_done()
    folder.weights.write_bytes(content)
    write(Path(folder.scan), affine=np.diag([3.0, 2.0, 2.0, 1.0]))
    assert not folder.is_done()
    Path(folder.scan).unlink()
    assert not folder.is_done()


@pytest.mark.parametrize("gone", [MASK, PICTURE, SIDECAR])
def test_an_output_that_is_gone_is_made_again(folder: Folder, gone: str) -> None:
    folder.write()
    folder.derivative().path(folder.scan, gone).unlink()
    assert not folder.is_done()


@pytest.mark.parametrize("content", ["", "{}", "[", "[]", '{"GeneratedBy": []}', '{"GeneratedBy": [{"Name": "fsl"}]}'])
def test_a_sidecar_of_another_says_that_all_is_anothers(folder: Folder, content: str) -> None:
    folder.write()
    assert folder.derivative().refusals(folder.scan) == []
    sidecar = folder.derivative().path(folder.scan, SIDECAR)
    sidecar.write_text(content)
    assert read_ours(sidecar) is None
    assert not folder.is_done()
    assert "not made by this bundle" in folder.derivative().refusals(folder.scan)[0]


def test_sidecars_name_their_source_within_the_dataset_and_no_path_of_this_machine(folder: Folder) -> None:
    (folder.root / "dataset_description.json").write_text("{}")
    folder.write()
    sidecar = json.loads(folder.files()["sub-1_desc-lesion_mask.json"])
    assert sidecar["Sources"] == ["bids:raw:in/sub-1_T2w.nii.gz"]
    assert str(folder.root) not in json.dumps(sidecar)


@pytest.mark.parametrize("written_before", [False, True])
def test_a_full_disk_changes_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch, written_before: bool) -> None:
    if written_before:
        folder.write()
    before, calls = folder.files(), []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        folder.write(threshold=0.4, files={**FILES, MASK: b"other"})
    assert folder.files() == before
    assert folder.is_done() == written_before


@pytest.mark.parametrize("after", range(4))
def test_after_a_kill_no_sidecar_stands_beside_anothers_mask(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """The process ends after ``after`` of the three files have taken their names."""
    folder.write()
    original, names = Path.replace, []

    def replace(path: Path, target: Path) -> None:
        if len(names) >= after:
            raise KeyboardInterrupt
        names.append(target.name)
        original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if after < 3:
            with pytest.raises(KeyboardInterrupt):
                folder.write(threshold=0.4, files={**FILES, MASK: b"other"})
        else:
            folder.write(threshold=0.4, files={**FILES, MASK: b"other"})
    assert not folder.is_done()
    assert folder.is_done(threshold=0.4) == (after == 3)
    assert folder.derivative().refusals(folder.scan) == []  # so the next run completes it
    folder.write(threshold=0.4)
    assert folder.is_done(threshold=0.4)


def test_the_raw_dataset_is_linked_by_a_relative_path(tmp_path: Path, weights: Path) -> None:
    raw, out = tmp_path / "bids", tmp_path / "bids" / "derivatives" / "meshnet"
    write(raw / "sub-1" / "anat" / "sub-1_T2w.nii.gz")
    (raw / "dataset_description.json").write_text("{}")
    Derivative(root_of(str(raw / "sub-1" / "anat")), str(out), [str(weights)], {}).write_description()
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"raw": "../.."}
    assert description["DatasetType"] == "derivative"


def test_the_folder_of_another_dataset_is_refused_as_long_as_that_is_there(tmp_path: Path, weights: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "sub-1" / "anat" / "sub-1_T2w.nii.gz")
    out = tmp_path / "out"
    refuse_other_dataset(out, tmp_path / "b")
    Derivative(root_of(str(tmp_path / "a")), str(out), [str(weights)], {}).write_description()
    refuse_other_dataset(out, tmp_path / "a")
    with pytest.raises(InputError) as error:
        refuse_other_dataset(out, tmp_path / "b")
    assert str(error.value) == f"{out}: holds masks of {tmp_path / 'a'}; give another output folder"
    (tmp_path / "a").rename(tmp_path / "moved")
    refuse_other_dataset(out, tmp_path / "moved")


def test_a_bidsignore_of_people_or_of_an_older_version_keeps_its_lines_and_gets_ours(
    tmp_path: Path, weights: Path
) -> None:
    ours, path = Derivative(str(tmp_path), str(tmp_path / "out"), [str(weights)], {}), tmp_path / "out" / ".bidsignore"
    ours.write_description()
    written = path.read_bytes().splitlines()
    assert b"*_qc.png" in written
    path.write_bytes(b"m\xfcll/\n*_qc.png")
    for _ in range(2):
        ours.write_description()
        assert path.read_bytes().endswith(b"\n")
        assert path.read_bytes().splitlines() == [b"m\xfcll/", b"*_qc.png", *written[1:]]


def test_done_depends_on_the_method_and_not_on_the_version(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write()
    path = folder.derivative().path(folder.scan, SIDECAR)
    content = json.loads(path.read_text())
    content["GeneratedBy"][0]["Version"] = "0.0.1"
    path.write_text(json.dumps(content))
    assert folder.is_done()
    monkeypatch.setattr(derivative, "METHOD", derivative.METHOD + 1)
    assert not folder.is_done()
    assert folder.derivative().refusals(folder.scan) == []


def test_two_processes_on_one_scan_leave_its_mask_and_the_sidecar_of_that_mask(folder: Folder) -> None:
    """As in containers, whose process ids are equal; masks differ in their last bits, as by another number of cores."""
    wanted, digest = list(FILES), sha256(folder.scan)
    folder.write()
    for turn in range(10):
        together = Barrier(2)

        def write(i: int, turn: int = turn, together: Barrier = together) -> None:
            ours, files = folder.derivative(0.1 + turn / 100), {MASK: b"%d" % i, PICTURE: b"%d" % i}
            together.wait()
            assert ours.refusals(folder.scan) == []
            ours.write(folder.scan, digest, {}, files)

        with ThreadPoolExecutor(2) as pool:
            assert [future.exception() for future in [pool.submit(write, i) for i in range(2)]] == [None, None]
        ours = folder.derivative(0.1 + turn / 100)
        assert ours.is_done(folder.scan, wanted)
        assert not ours.is_changed(folder.scan)
        assert {*folder.files()} == {f"sub-1_{name}" for name in (*FILES, SIDECAR)}


def made_by_0_14_0(out: Path, scan: Path, root: Path) -> None:
    """A mask, its sidecar and the description, as 0.14.0 wrote them."""
    by = [{"Name": "MeshNet stroke lesion segmentation", "Version": "0.14.0", "Weights": "model.pt",
           "WeightsSHA256": "0", "Settings": {"threshold": 0.85}}]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    mask = write(out / "T2_desc-lesion_mask.nii.gz")
    source = f"bids:raw:{scan.relative_to(root).as_posix()}"
    sidecar = {"Sources": [source], "SourceSHA256": sha256(scan), "MaskSHA256": sha256(mask), "GeneratedBy": by}
    (out / "T2_desc-lesion_mask.json").write_text(json.dumps(sidecar))
    about = {"Name": "x", "GeneratedBy": by, "DatasetLinks": {"raw": os.path.relpath(root, out)}}
    (out / "dataset_description.json").write_text(json.dumps(about))


def test_old_masks_are_ours_and_those_of_other_scans_are_not_replaced(tmp_path: Path, weights: Path) -> None:
    alice, bob, out = tmp_path / "alice" / "T2.nii.gz", tmp_path / "bob" / "T2.nii.gz", tmp_path / "out"
    write(alice)
    write(bob, affine=np.diag([3.0, 2.0, 2.0, 1.0]))
    made_by_0_14_0(out, alice, alice.parent)
    ours, theirs = (Derivative(str(scan.parent), str(out), [str(weights)], {}) for scan in (alice, bob))
    assert ours.refusals(str(alice)) == []
    assert not ours.is_done(str(alice), [MASK])
    (line,) = theirs.refusals(str(bob))
    assert line.startswith(f"{out / 'T2_desc-lesion_mask.nii.gz'}: is of another scan, bids:raw:T2.nii.gz, so not repl")
    write(alice, affine=np.diag([4.0, 2.0, 2.0, 1.0]))  # exported again
    assert ours.refusals(str(alice)) == []


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
