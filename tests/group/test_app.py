"""A dataset goes through ``participant`` by many processes and ``group`` by one; what has no result is in a table."""

import csv
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import nibabel as nib
import pytest
from conftest import ROOT, small_disk_at, write

from scripts import segment as command
from scripts.common.errors import InputError
from scripts.common.files import sha256
from scripts.group import app
from scripts.inference.derivative import Derivative, read_ours
from tests.inference import conftest as inference

weights = inference.weights
SCANS = ["sub-1/anat/sub-1_acq-a_T2w", "sub-1/anat/sub-1_acq-b_T2w", "sub-2/ses-1/anat/sub-2_ses-1_T2w"]
SCANS += ["sub-2/ses-2/anat/sub-2_ses-2_T2w"]


@pytest.fixture(autouse=True)
def logs_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command sets up logging for its process, which this one has in common with other tests."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Four scans of two participants; one without a T2w and one whose scan is broken."""
    for i, name in enumerate(SCANS):
        write(tmp_path / "bids" / f"{name}.nii.gz", inference.phantom(100 + i), inference.AFFINE)
    write(tmp_path / "bids" / "sub-3" / "anat" / "sub-3_T1w.nii.gz")
    broken = tmp_path / "bids" / "sub-4" / "anat" / "sub-4_T2w.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes((tmp_path / "bids" / f"{SCANS[0]}.nii.gz").read_bytes()[:-200])
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.9.0"}')
    return tmp_path / "bids"


Participant = Callable[..., int]


@pytest.fixture
def participant(bids: Path, tmp_path: Path, weights: Path) -> Participant:
    """``app.participant`` of this dataset into ``out``."""

    def run(*labels: str, select: tuple = (), out: Path = tmp_path / "out", **overrides: object) -> int:
        settings = {"ckpt_path": str(weights), "device": "cpu", "amp": False, "qc": False}
        return app.participant(bids, out, [*labels], [*select], [], **settings | overrides)

    return run


@pytest.fixture
def group(bids: Path, tmp_path: Path) -> Callable[..., int]:
    """``app.group`` of what it has written."""

    def run(*labels: str, select: tuple = (), out: Path = tmp_path / "out") -> int:
        return app.group(bids, out, [*labels], [*select], None, None)

    return run


def rows(path: Path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def masks(out: Path) -> list[str]:
    ending = "_desc-lesion_mask.nii.gz"
    return sorted(path.relative_to(out).as_posix().removesuffix(ending) for path in out.rglob(f"*{ending}"))


def failures(out: Path) -> dict[str, str]:
    return {row["scan"]: row["reason"] for row in rows(out / "failures.tsv")} if (out / "failures.tsv").exists() else {}


def named(*scans: str) -> list[str]:
    return [scan.removesuffix("_T2w") for scan in scans]


def told(function: Callable, *arguments: object, **options: object) -> str:
    """The line that ends a call."""
    with pytest.raises(Exception) as error:  # noqa: PT011
        function(*arguments, **options)
    cause = app.first_cause(error.value)
    assert isinstance(cause, InputError)
    return str(cause)


# ---- participant


def test_all_scans_of_all_participants_are_segmented_and_the_others_are_in_the_table(
    participant: Participant, tmp_path: Path
) -> None:
    assert participant() == 3
    assert masks(tmp_path / "out") == named(*SCANS)
    reasons = failures(tmp_path / "out")
    assert reasons.pop("sub-3") == "no T2w scan (*_T2w.nii.gz)"
    assert reasons.pop("sub-4/anat/sub-4_T2w.nii.gz").startswith("not a readable NIfTI image (")
    assert reasons == {}
    (log,) = (tmp_path / "out" / "logs").glob("*_participant_*.log")
    lines = log.read_text().splitlines()
    assert lines[0].endswith(shlex.join(sys.orig_argv))
    assert any(line.endswith("sub-3: no T2w scan (*_T2w.nii.gz); left out") for line in lines)


@pytest.mark.parametrize(
    ("labels", "select", "expected"),
    [
        (["1"], [], SCANS[:2]),
        (["sub-1"], [], SCANS[:2]),
        (["sub-1", "2"], [], SCANS),
        (["2"], ["ses-2"], SCANS[3:]),
        ([], ["acq-b"], SCANS[1:2]),
        (["1", "2"], ["acq-a", "acq-b"], SCANS[:2]),
    ],
)
def test_labels_and_entities_choose_scans_and_the_layout_stays(
    participant: Participant, tmp_path: Path, labels: list[str], select: list[str], expected: list[str]
) -> None:
    code = participant(*labels, select=select)
    assert masks(tmp_path / "out") == named(*expected)
    assert code == (0 if labels else 3)  # as sub-3 was asked for, too


def test_a_scan_alone_has_its_mask_where_the_dataset_has_it(bids: Path, weights: Path, tmp_path: Path) -> None:
    settings = {"ckpt_path": str(weights), "device": "cpu", "amp": False, "qc": False}
    assert app.segment(bids / f"{SCANS[2]}.nii.gz", tmp_path / "out", **settings) == 0
    assert masks(tmp_path / "out") == named(SCANS[2])
    assert app.segment(bids / "sub-4" / "anat", tmp_path / "out", **settings) == 3
    scan = bids / f"{SCANS[2]}.nii.gz"
    line = f"{scan}: lies in the dataset {bids}; give --output_dir, as {bids}/derivatives/meshnet"
    assert told(app.segment, scan, **settings) == line
    (bids / "dataset_description.json").unlink()  # sub- tells of a dataset, too
    assert told(app.segment, scan, **settings) == line
    assert not [*bids.glob("*.tsv")]


def test_a_scan_that_was_repaired_has_no_failure_any_more(participant: Participant, bids: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", bids / "sub-4" / "anat" / "sub-4_T2w.nii.gz"
    assert (participant("4"), participant("3"), participant("1")) == (3, 3, 0)
    assert [*failures(out)] == ["sub-3", "sub-4/anat/sub-4_T2w.nii.gz"]
    write(broken, inference.phantom(120), inference.AFFINE)
    assert participant("4") == 0
    assert [*failures(out)] == ["sub-3"]
    write(bids / "sub-3" / "anat" / "sub-3_T2w.nii.gz", inference.phantom(130), inference.AFFINE)
    assert participant("sub-3") == 0
    assert not (out / "failures.tsv").exists()


@pytest.mark.parametrize(
    ("labels", "select", "line"),
    [
        (["1", "99"], [], "--participant_label: there is no sub-99 in {bids}; there are sub-1, sub-2, sub-3, sub-4"),
        (["2"], ["ses-9"], "--session_label or --select ses-9: none of the 2 scans has it; they have ses-1, ses-2"),
    ],
)
def test_what_is_not_there_is_a_line_and_nothing_is_written(
    participant: Participant, bids: Path, tmp_path: Path, labels: list[str], select: list[str], line: str
) -> None:
    assert told(participant, *labels, select=select) == line.format(bids=bids)
    assert not (tmp_path / "out" / "dataset_description.json").exists()


def test_a_folder_that_is_no_dataset_is_a_line(bids: Path, tmp_path: Path) -> None:
    call = partial(app.participant, output_dir=tmp_path / "out", labels=[], select=[], spaces=[])
    part = f"{bids / 'sub-1'}: no BIDS dataset, there is no sub- folder in it; it is a part of {bids}"
    assert told(call, bids / "sub-1") == part
    assert told(call, tmp_path) == f"{tmp_path}: no BIDS dataset, there is no sub- folder in it"
    assert told(call, tmp_path / "none") == f"{tmp_path / 'none'}: no such folder"
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_is_refused_and_stays_as_it_was(
    participant: Participant, bids: Path, tmp_path: Path
) -> None:
    before = {p: p.stat().st_mtime_ns for p in bids.rglob("*")}
    line = f"{bids}/dataset_description.json: not made by this bundle, so not replaced; give another --output_dir"
    assert told(participant, out=bids) == line
    assert {p: p.stat().st_mtime_ns for p in bids.rglob("*")} == before
    participant("1")
    write(tmp_path / "other" / "sub-1" / "anat" / "sub-1_T2w.nii.gz")
    line = f"{tmp_path / 'out'}: holds masks of {bids}; give another output folder"
    for call in (partial(app.participant, spaces=[]), partial(app.group, atlas=None, atlas_labels=None)):
        assert told(call, tmp_path / "other", tmp_path / "out", labels=[], select=[]) == line


def test_a_folder_that_may_not_be_written_is_a_line(bids: Path, weights: Path) -> None:
    """As an ordinary user; root may write anywhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(bids, place / "bids")
        call = partial(app.participant, place / "bids", place / "out", ["1"], [], [], ckpt_path=str(weights))
        try:
            if os.getuid() == 0:
                os.seteuid(65534)
            else:
                place.chmod(0o555)
            assert told(call) == f"{place}/out/logs: cannot be written (Permission denied); give another output folder"
        finally:
            os.seteuid(os.getuid())
            place.chmod(0o755)
        assert not (place / "out").exists()


@pytest.mark.parametrize("full", ["before", "after the first scan"])
def test_a_full_disk_is_a_line_and_loses_no_mask(
    participant: Participant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, full: str
) -> None:
    with small_disk_at(tmp_path / "small", "96k") as disk:
        out, original = disk / "out", Derivative.write
        participant("1", out=out)
        before = {p: p.read_bytes() for p in disk.rglob("sub-1*") if p.is_file()}

        def fill(*arguments: object) -> None:
            if arguments:
                original(*arguments)
            with suppress(OSError), (disk / "filler").open("ab", buffering=0) as filler:
                while True:
                    filler.write(bytes(512))

        if full == "before":
            fill()
        else:
            monkeypatch.setattr(Derivative, "write", fill)
        assert participant("2", out=out) == 3
        printed = capfd.readouterr()
        n, *lines, table = printed.err.splitlines()[-4 if full == "before" else -3 :]
        assert n == f"{len(lines)} scan(s) left out:"
        assert len(lines) == (2 if full == "before" else 1)
        assert table.startswith(f"{out}/lesions.tsv: cannot be written (No space left on device); ")
        assert all("cannot be written (No space left on device); " in line for line in lines)
        assert "Traceback" not in printed.err + printed.out
        monkeypatch.undo()
        (disk / "filler").unlink()
        assert masks(out) == named(*SCANS[: 2 if full == "before" else 3])
        assert {p: p.read_bytes() for p in before} == before
        assert participant("2", out=out) == 0
        assert masks(out) == named(*SCANS)
        assert not (out / "failures.tsv").exists()


def test_an_unknown_space_or_no_antspy_is_a_line_before_anything_is_segmented(
    bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ants", None)
    for space, line in (("MNI", "--space MNI: expected T1w or MNI152NLin2009aSym"), ("T1w", "--space needs ANTsPy")):
        with pytest.raises(InputError, match=line):
            app.participant(bids, tmp_path / "out", [], [], [space])
    assert not (tmp_path / "out").exists()


def test_masks_go_to_other_spaces_by_the_t1w_of_the_session_and_a_failure_is_a_row(
    bids: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", []
    for name in ("sub-1/anat/sub-1_acq-a_T1w", "sub-1/anat/sub-1_acq-c_T1w", "sub-2/ses-1/anat/sub-2_ses-1_run-2_T1w"):
        write(bids / f"{name}.nii.gz")

    def normalize(scan: Path, t1w: Path | None, *arguments: object) -> None:
        calls.append((scan.name, t1w and t1w.name, *arguments))
        if t1w is None:
            raise InputError(f"{scan}: there is no T1w beside it")

    monkeypatch.setattr(app, "normalize", normalize)
    monkeypatch.setattr(app, "check_spaces", calls.append)
    settings = {"ckpt_path": str(weights), "device": "cpu", "amp": False, "qc": False}
    assert app.participant(bids, out, ["1", "2"], [], ["T1w"], **settings) == 3
    t1w = ["sub-1_acq-a_T1w.nii.gz", "sub-1_acq-a_T1w.nii.gz", "sub-2_ses-1_run-2_T1w.nii.gz", None]
    assert calls.pop(0) == ["T1w"]
    assert calls == [
        (f"{Path(scan).name}.nii.gz", path, out / f"{name}_desc-lesion_mask.nii.gz", out / name, ["T1w"])
        for scan, name, path in zip(SCANS, named(*SCANS), t1w, strict=True)
    ]
    assert failures(out) == {f"{SCANS[3]}.nii.gz": "there is no T1w beside it"}
    (log,) = (out / "logs").glob("*.log")
    assert "has 2 T1w scans beside it; sub-1_acq-a_T1w.nii.gz is taken" in log.read_text()


# ---- group


def test_a_group_has_a_row_for_each_mask_and_says_what_has_none(
    participant: Participant, group: Callable, bids: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert told(group) == f"{out}: holds no masks of this bundle; run participant first"
    participant("1")
    (bids / "participants.tsv").write_text("participant_id\tage\nsub-1\t61\n")
    assert group() == 3
    (first, second) = rows(out / "group" / "lesions.tsv")
    assert [(row["participant_id"], row["acq"], row["age"]) for row in (first, second)] == [
        ("sub-1", "a", "61"),
        ("sub-1", "b", "61"),
    ]
    assert [*failures(out)] == [f"{SCANS[2]}.nii.gz", f"{SCANS[3]}.nii.gz", "sub-3", "sub-4/anat/sub-4_T2w.nii.gz"]
    shutil.rmtree(bids / "sub-3")
    shutil.rmtree(bids / "sub-4")
    participant("2")
    assert group() == 0
    assert not (out / "failures.tsv").exists()
    assert len(rows(out / "group" / "lesions.tsv")) == 4
    assert group("2", select=["ses-1"]) == 0
    assert [row["session_id"] for row in rows(out / "group" / "lesions.tsv")] == ["ses-1"]


def test_a_rejected_mask_is_left_out_of_the_table_with_a_line(
    participant: Participant, group: Callable, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    participant("1")
    kept, rejected = (f"{name}_desc-lesion_mask.nii.gz" for name in named(*SCANS[:2]))
    (out / "group").mkdir()
    decisions = f"mask\tdecision\tnote\n{rejected}\treject\tmotion\n{kept}\tcorrect\ttoo much\n"
    (out / "group" / "decisions.tsv").write_text(decisions)
    assert group("1") == 0
    (row,) = rows(out / "group" / "lesions.tsv")
    assert (row["mask"], row["decision"], row["note"]) == (kept, "correct", "too much")
    (log,) = (out / "logs").glob("*_group_*.log")
    assert f"Left out of the table, as group/decisions.tsv rejects them: {rejected}" in log.read_text()
    assert (out / "group" / "decisions.tsv").read_text() == decisions


def test_the_page_shows_every_mask_and_maps_and_regions_those_that_are_not_rejected(
    participant: Participant, bids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "out", {}

    def recorder(name: str) -> Callable[..., Path]:
        def record(*arguments: object) -> Path:
            given[name] = arguments
            return out / name

        return record

    for name in ("write_page", "write_overlap", "write_regions"):
        monkeypatch.setattr(app, name, recorder(name))
    participant("1")
    (out / "group").mkdir()
    kept, rejected = (f"{name}_desc-lesion_mask.nii.gz" for name in named(*SCANS[:2]))
    (out / "group" / "decisions.tsv").write_text(f"mask\tdecision\tnote\n{rejected}\treject\t\n")
    app.group(bids, out, [], [], "atlas.nii.gz", "atlas.tsv")
    shown = {name: [row["mask"] for row in arguments[1]] for name, arguments in given.items()}
    assert shown == {"write_page": [kept, rejected], "write_overlap": [kept], "write_regions": [kept]}
    assert given["write_page"][2] == out / "write_overlap"
    assert given["write_regions"][2:] == ("atlas.nii.gz", "atlas.tsv")


def test_an_atlas_that_does_not_fit_leaves_the_group_as_it_was(
    participant: Participant, group: Callable, bids: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    participant("1")
    group("1")
    before = {path: path.read_bytes() for path in (out / "group").iterdir()}
    participant("2", select=["ses-1"])
    line = f"{out}: no mask in MNI152NLin2009aSym; run participant with --space MNI152NLin2009aSym first"
    assert told(app.group, bids, out, [], [], "atlas.nii.gz", "atlas.tsv") == line
    assert {path: path.read_bytes() for path in (out / "group").iterdir()} == before


# ---- the command


def command_line(*arguments: object, cwd: Path, code: int = 0, **options: object) -> subprocess.CompletedProcess:
    line = [sys.executable, ROOT / "scripts" / "segment.py", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*map(str, line)], cwd=cwd, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == code, done.stderr[-2000:]
    return done


@pytest.mark.kept
def test_a_scan_of_any_name_is_segmented_beside_itself(weights: Path, tmp_path: Path) -> None:
    """Numbers and # in names are as they were typed."""
    scan = write(tmp_path / "Study #2" / "2024_01_15.nii.gz", inference.phantom(), inference.AFFINE)
    shutil.copy(weights, scan.with_name("007"))
    shutil.copy(weights.with_suffix(".json"), scan.with_name("007.json"))
    command_line(scan.name, "--ckpt_path", "007", "--device=cpu", "--qc", "false", cwd=scan.parent)
    (row,) = rows(scan.with_name("lesions.tsv"))
    voxels = nib.load(scan.with_name("2024_01_15_desc-lesion_mask.nii.gz")).get_fdata().sum()
    assert float(row["lesion_volume"]) == voxels * 12 > 5000
    (log,) = scan.with_name("logs").glob("*_scan_*.log")
    assert log.read_text().splitlines()[0].endswith("2024_01_15.nii.gz --ckpt_path 007 --device=cpu --qc false")


@pytest.mark.slow
def test_exit_codes_and_overrides_of_the_command(bids: Path, weights: Path, tmp_path: Path) -> None:
    """A misspelt key and a label that is not there: one line, and nothing is written."""
    setting, level = ["--ckpt_path", weights, "--device", "cpu"], ["bids", "out", "participant"]
    last = partial(command_line, cwd=tmp_path)
    assert last(*level, *setting, "--tresh", 1, code=1).stderr.splitlines()[-1].startswith("tresh: nothing reads this")
    wrong = last(*level, "--participant_label", "01", code=1).stderr.splitlines()
    assert wrong[-1].startswith(f"--participant_label: there is no sub-01 in {bids}; there are sub-1")
    (only,) = last(*level, *setting, "--session_label", "9", code=1).stderr.splitlines()  # no warning of MONAI's
    assert only == "--session_label or --select ses-9: none of the 5 scans has it; they have ses-1, ses-2"
    last(*level, "--participant_label", "1", "sub-4", *setting, "--threshold", 0.75, "--masks#qc", "false", code=3)
    about = read_ours(tmp_path / "out" / "sub-1" / "anat" / "sub-1_acq-a_desc-lesion_mask.json")
    assert about["GeneratedBy"][0]["Settings"]["threshold"] == 0.75
    assert not [*(tmp_path / "out").rglob("*.png")]
    last("bids", "out", "group", "--participant-label", "1")
    last("bids", "out", "group", "--participant-label", "1", "4", code=3)  # of which sub-4 has no result
    last("bids", "out", code=2)
    shown = last(*level, "--participant_label", "1", *setting, "--threshold", 7, "--debug", "true", code=1).stderr
    assert "Traceback (most recent call last)" in shown


def test_help_and_version_say_what_one_expects(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    version = json.loads((ROOT / "metadata.json").read_text())["version"]
    for flag, expected in (("--help", "--participant_label"), ("--version", version)):
        monkeypatch.setattr(sys, "argv", ["segment.py", flag])
        with pytest.raises(SystemExit) as stop:
            command.main()
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_eight_processes_on_one_folder_of_which_one_is_killed_lose_nothing(
    bids: Path, weights: Path, tmp_path: Path
) -> None:
    """Sub-8 has 60 sessions, and is killed after the first. What is there is whole; group says what is not."""
    out = tmp_path / "out"
    for i in (5, 6, 7):
        write(bids / f"sub-{i}" / "anat" / f"sub-{i}_T2w.nii.gz", inference.phantom(100 + 7 * i), inference.AFFINE)
    for i in range(60):
        name = f"sub-8/ses-{i:02}/anat/sub-8_ses-{i:02}_T2w.nii.gz"
        write(bids / name, inference.phantom(200 + i), inference.AFFINE)
    settings = ["--ckpt_path", weights, "--device", "cpu", "--qc", "false"]
    jobs, base = {}, [sys.executable, ROOT / "scripts" / "segment.py", bids, out, "participant", "--participant_label"]
    for i in range(1, 9):
        line = [*map(str, (*base, i, *settings))]
        jobs[i] = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun = time.time()
        while not [*out.glob("sub-8/ses-*/anat/*_mask.nii.gz")] and time.time() - begun < 600:
            time.sleep(0.01)
        jobs[8].send_signal(signal.SIGKILL)
        codes = {i: job.wait(900) for i, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.kill()
    assert codes == {1: 0, 2: 0, 3: 3, 4: 3, 5: 0, 6: 0, 7: 0, 8: -signal.SIGKILL}
    made = [*out.rglob("*_mask.nii.gz")]
    done = [path for path in made if path.name.startswith("sub-8")]
    assert 1 <= len(done) < 60
    for path in made:
        assert nib.load(path).get_fdata().any()
        assert read_ours(path.with_name(path.name.replace(".nii.gz", ".json")))["MaskSHA256"] == sha256(path)
    assert [*failures(out)] == ["sub-3", "sub-4/anat/sub-4_T2w.nii.gz"]
    command_line(bids, out, "group", cwd=tmp_path, code=3)
    table = rows(out / "group" / "lesions.tsv")
    assert [row["mask"] for row in table] == sorted(path.relative_to(out).as_posix() for path in made)
    assert len(failures(out)) == 2 + 60 - len(done)
    command_line(bids, out, "participant", "--participant_label", 8, *settings, cwd=tmp_path)
    command_line(bids, out, "group", cwd=tmp_path, code=3)
    assert [*failures(out)] == ["sub-3", "sub-4/anat/sub-4_T2w.nii.gz"]
    table = rows(out / "group" / "lesions.tsv")
    assert len(table) == len(rows(out / "lesions.tsv")) == 4 + 3 + 60
    for row in table:
        assert float(row["lesion_volume"]) == nib.load(out / row["mask"]).get_fdata().sum() * 12
