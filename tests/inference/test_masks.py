"""One odd scan never ends the run; of each scan all files are written, or none; what is missing is made later."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import monai
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import lesion, write
from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.common.errors import describe
from scripts.data import reader
from scripts.evaluation import qc_picture
from scripts.execution.agreement import PredictionsInferer
from scripts.inference import masks


def refused(segment: Callable, *arguments: object, **overrides: object) -> list[str]:
    """The lines that a run ends with."""
    with pytest.raises(RuntimeError) as error:
        segment(*arguments, **overrides)
    return describe(error.value).splitlines()


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def made(name: str, *outputs: str) -> list[str]:
    return sorted(f"{name}_desc-lesion_{output}" for output in ("mask.json", "mask.nii.gz", *outputs))


SHARED = [".bidsignore", "dataset_description.json", "lesions.json", "lesions.tsv"]


def test_a_scan_of_one_slice_does_not_end_the_run(segment: Callable, scans: Path, tmp_path: Path) -> None:
    write(scans / "sub-0" / "sub-0_T2w.nii.gz", np.random.default_rng(0).random((1, 30, 24)))
    segment(scans, tmp_path / "out", qc=True)
    outputs = [name for i in range(3) for name in made(f"sub-{i}", "qc.png")]
    assert files(tmp_path / "out") == sorted([*SHARED, *outputs])


@pytest.mark.parametrize("where", ["reading again", "the network", "the picture", "writing"])
def test_a_failure_with_one_scan_is_a_line_and_leaves_nothing_of_it(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    calls = []

    def fails_first(original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(where)
            if len(calls) == 1:
                raise OSError(28, "No space left on device") if where == "writing" else MemoryError("no room")
            return original(*args, **kwargs)

        return call

    owner, name = {
        "reading again": (monai.transforms.Spacing, "__call__"),
        "the network": (PredictionsInferer, "__call__"),
        "the picture": (qc_picture, "draw"),
        "writing": (masks.Derivative, "write"),
    }[where]
    monkeypatch.setattr(owner, name, fails_first(getattr(owner, name)))
    lines = refused(segment, scans, tmp_path / "out", flip_averaging=True, qc=True)
    reason = "OSError: [Errno 28] No space left on device" if where == "writing" else "MemoryError: no room"
    assert lines == ["1 scan(s) left out:", f"{scans / 'sub-1' / 'anat' / 'sub-1_T2w.nii.gz'}: {reason}"]
    assert files(tmp_path / "out") == sorted([*SHARED, *made("sub-2", "qc.png")])


def test_a_failure_in_a_worker_is_a_line_too(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = monai.transforms.Orientation.__call__

    def call(self: object, data: object, **kwargs: object) -> object:
        if "sub-1" in data.meta["filename_or_obj"]:
            raise MemoryError("no room")
        return original(self, data, **kwargs)

    monkeypatch.setattr(monai.transforms.Orientation, "__call__", call)
    lines = refused(segment, scans, tmp_path / "out", num_workers=1)
    assert lines == ["1 scan(s) left out:", f"{scans}/sub-1/anat/sub-1_T2w.nii.gz: MemoryError: no room"]
    assert files(tmp_path / "out") == sorted([*SHARED, *made("sub-2")])


def test_a_second_run_makes_what_is_missing_and_nothing_else(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def states() -> dict:
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("sub-*.*")}

    segment(scans, out)
    first = states()
    segment(scans, out, save_probability=True)
    second = states()
    assert {*second} - {*first} == {f"sub-{i}_desc-lesion_probseg.nii.gz" for i in (1, 2)}
    assert [second[name][1] for name in first] == [content for _, content in first.values()]
    with monkeypatch.context() as patch:
        patch.setattr(qc_picture, "draw", lambda *args: b"\x89PNG")
        segment(scans, out, qc=True)
    third = states()
    assert {*third} - {*second} == {f"sub-{i}_desc-lesion_qc.png" for i in (1, 2)}
    assert {*third} >= {*second}  # the probabilities of the same settings stay
    segment(scans, out, save_probability=True, qc=True)
    segment(scans, out)
    assert states() == third


def test_outputs_of_other_settings_do_not_stay_beside_a_new_mask(
    segment: Callable, scans: Path, tmp_path: Path
) -> None:
    segment(scans, tmp_path / "out", save_probability=True)
    segment(scans, tmp_path / "out", threshold=0.9)
    assert files(tmp_path / "out") == sorted([*SHARED, *made("sub-1"), *made("sub-2")])


def test_a_dataset_that_was_moved_or_touched_is_done(segment: Callable, scans: Path, tmp_path: Path) -> None:
    segment(scans, scans / "derivatives" / "meshnet")
    moved = scans.rename(tmp_path / "moved")
    for path in moved.rglob("*_T2w.nii.gz"):
        path.touch()
    assert segment(moved, moved / "derivatives" / "meshnet").parser.get_parsed_content("dataset#data") == []


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.json", "qc.png", "probseg.nii.gz"])
def test_what_another_made_is_never_replaced(segment: Callable, scans: Path, tmp_path: Path, name: str) -> None:
    manual = tmp_path / "out" / "sub-1" / "anat" / f"sub-1_desc-lesion_{name}"
    manual.parent.mkdir(parents=True)
    manual.write_bytes(b"{}")
    lines = refused(segment, scans, tmp_path / "out", qc=True, save_probability=True)
    assert lines[1] == f"{manual}: not made by this bundle, so not replaced; move it, or give another --output_dir"
    assert manual.read_bytes() == b"{}"
    assert made("sub-2", "qc.png", "probseg.nii.gz") == sorted(n for n in files(tmp_path / "out") if "sub-2" in n)
    assert sum("sub-1" in n for n in files(tmp_path / "out")) == 1


def test_a_mask_that_was_corrected_by_hand_is_not_replaced(segment: Callable, scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out")
    mask = tmp_path / "out" / "sub-1" / "anat" / "sub-1_desc-lesion_mask.nii.gz"
    image = nib.load(mask)
    nib.save(nib.Nifti1Image(np.ones_like(image.dataobj), image.affine), mask)
    corrected = mask.read_bytes()
    lines = refused(segment, scans, tmp_path / "out", threshold=0.4)
    assert lines[1] == f"{mask}: was changed by hand, so not replaced; move it, or give another --output_dir"
    assert mask.read_bytes() == corrected


def test_a_corrected_mask_gets_its_picture_and_probability_again_and_stays(
    segment: Callable, scans: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out" / "sub-1" / "anat"
    segment(scans, tmp_path / "out", qc=True)
    mask, picture = (folder / f"sub-1_desc-lesion_{end}" for end in ("mask.nii.gz", "qc.png"))
    image, drawn = nib.load(mask), picture.read_bytes()
    nib.save(nib.Nifti1Image(np.eye(24, 30, dtype=np.uint8)[..., None].repeat(20, 2), image.affine), mask)
    corrected = mask.read_bytes()
    segment(scans / "sub-1", tmp_path / "out", qc=True, save_probability=True)
    assert mask.read_bytes() == corrected
    assert picture.read_bytes() != drawn
    assert 0 < nib.load(folder / "sub-1_desc-lesion_probseg.nii.gz").get_fdata().max() <= 1
    again = segment(scans / "sub-1", tmp_path / "out", qc=True, save_probability=True)
    assert again.parser.get_parsed_content("dataset#data") == []
    picture.unlink()
    segment(scans / "sub-1", tmp_path / "out", qc=True)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert mask.read_bytes() == corrected
    first, second = csv.DictReader((tmp_path / "out" / "lesions.tsv").open(), delimiter="\t")
    assert (first["changed_by_hand"], second["changed_by_hand"]) == ("true", "false")
    assert float(first["lesion_volume"]) == 24 * 20 * 12  # a diagonal plane of voxels of 2x2x3 mm
    assert float(first["left_volume"]) + float(first["right_volume"]) == 24 * 20 * 12


def test_a_scan_that_does_not_tell_left_from_right_has_a_volume_but_no_sides(
    segment: Callable, scans: Path, tmp_path: Path
) -> None:
    path = scans / "sub-1" / "anat" / "sub-1_T2w.nii.gz"
    image = nib.load(path)
    for form in (image.set_sform, image.set_qform):
        form(None, 0)
    nib.save(image, path)
    segment(scans, tmp_path / "out")
    first, second = csv.DictReader((tmp_path / "out" / "lesions.tsv").open(), delimiter="\t")
    sides = ("left_volume", "right_volume", "laterality")
    assert [first[key] for key in sides] == ["n/a"] * 3
    assert float(first["lesion_volume"]) > 0
    assert "n/a" not in [second[key] for key in sides]


def test_the_mask_of_another_scan_is_never_replaced(segment: Callable, tmp_path: Path) -> None:
    for i, name in enumerate(("alice", "bob")):
        write(tmp_path / name / "T2.nii.gz", np.random.default_rng(i).random((24, 30, 20)))
    segment(tmp_path / "alice" / "T2.nii.gz", tmp_path / "out")
    mask = tmp_path / "out" / "T2_desc-lesion_mask.nii.gz"
    before = mask.read_bytes()
    for _ in range(2):  # it is no more Bob's when he asks again
        lines = refused(segment, tmp_path / "bob" / "T2.nii.gz", tmp_path / "out")
        assert lines[1].startswith(f"{mask}: is of another scan, bids:raw:T2.nii.gz, so not replaced; ")
        assert mask.read_bytes() == before
    write(tmp_path / "alice" / "T2.nii.gz", np.random.default_rng(3).random((24, 30, 20)))  # exported again
    segment(tmp_path / "alice" / "T2.nii.gz", tmp_path / "out")
    assert mask.read_bytes() != before


def test_a_rerun_by_another_threshold_replaces_the_row(segment: Callable, scans: Path, tmp_path: Path) -> None:
    segment(scans, tmp_path / "out", threshold=0.6)
    segment(scans / "sub-1", tmp_path / "out", threshold=0.4)
    rows = list(csv.DictReader((tmp_path / "out" / "lesions.tsv").open(), delimiter="\t"))
    assert [(Path(row["scan"]).name, row["threshold"]) for row in rows] == [
        ("sub-1_T2w.nii.gz", "0.4"),
        ("sub-2_T2w.nii.gz", "0.6"),
    ]
    assert [(row["device"], row["precision"]) for row in rows] == [("cpu", "float32")] * 2


def test_a_volume_of_two_or_three_whole_values_is_a_mask_and_left_out_with_a_line(
    segment: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "in" / "T2.nii.gz", np.random.default_rng(0).random((24, 30, 20)))
    write(tmp_path / "in" / "drawn.nii.gz", lesion())
    segment(tmp_path / "in", tmp_path / "out")
    assert f"{tmp_path}/in/drawn.nii.gz: two or three whole values, so a mask and no scan; left out" in caplog.messages
    assert [n for n in files(tmp_path / "out") if n.endswith(".gz")] == ["T2_desc-lesion_mask.nii.gz"]
    segment(tmp_path / "in", tmp_path / "out")  # nothing is left to do
    lines = refused(segment, tmp_path / "in" / "drawn.nii.gz", tmp_path / "alone")
    assert lines[1] == f"{tmp_path}/in/drawn.nii.gz: two or three whole values, so a mask and no scan"
    assert not (tmp_path / "alone").exists()


def test_masks_of_version_0_4_0_are_replaced(segment: Callable, scans: Path, tmp_path: Path) -> None:
    by = [{"Name": "MeshNet stroke lesion segmentation", "Version": "0.4.0"}]
    folder = tmp_path / "out" / "sub-1" / "anat"
    mask = write(folder / "sub-1_desc-lesion_mask.nii.gz").read_bytes()
    (folder / "sub-1_desc-lesion_mask.json").write_text(json.dumps({"GeneratedBy": by}))
    description = {"Name": "old", "DatasetType": "derivative", "GeneratedBy": by}
    (tmp_path / "out" / "dataset_description.json").write_text(json.dumps(description))
    segment(scans, tmp_path / "out")
    assert (folder / "sub-1_desc-lesion_mask.nii.gz").read_bytes() != mask


@pytest.mark.parametrize("name", ["dataset_description.json", "lesions.tsv", "lesions.json"])
def test_the_folder_of_another_is_refused_before_anything_is_written(
    segment: Callable, scans: Path, tmp_path: Path, name: str
) -> None:
    out = scans if name == "dataset_description.json" else tmp_path / "out"
    out.mkdir(exist_ok=True)
    if out != scans:
        (out / name).write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    lines = refused(segment, scans, out)
    assert lines == [f"{out / name}: not made by this bundle, so not replaced; give another --output_dir"]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written_is_one_line(segment: Callable, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (line,) = refused(segment, scans, tmp_path / "file" / "out")
    assert str(tmp_path / "file" / "out") in line
    assert "Not a directory" in line


def test_a_scan_is_read_once_and_of_two_with_the_same_content_a_line_tells(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, copy = scans / "sub-1" / "anat" / "sub-1_T2w.nii.gz", scans / "sub-3" / "sub-3_T2w.nii.gz"
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    reads, read = [], reader._read
    monkeypatch.setattr(reader, "_read", lambda path: reads.append(path.name) or read(path))
    segment(scans, tmp_path / "out", qc=True)
    assert sorted(reads) == [f"sub-{i}_T2w.nii.gz" for i in (1, 2, 3)]
    assert f"{copy}: the same content as {first}" in caplog.messages
    assert not reader._held


def test_every_scan_unreadable_leaves_the_folder_alone(segment: Callable, tmp_path: Path) -> None:
    (tmp_path / "a_T2w.nii.gz").write_bytes(b"no image")
    lines = refused(segment, tmp_path / "a_T2w.nii.gz", tmp_path / "out")
    assert lines[1].startswith(f"{tmp_path / 'a_T2w.nii.gz'}: not a readable NIfTI image")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["in/sub-1_T2w.nii.gz", "out/sub-1_desc-lesion_mask.nii.gz"])
def test_a_file_that_may_no_longer_be_read_is_left_out(
    segment: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for i in (1, 2):
        write(tmp_path / "in" / f"sub-{i}_T2w.nii.gz", np.random.default_rng(i).random((24, 30, 20)))
    segment(tmp_path / "in", tmp_path / "out")
    unreadable, before, original = tmp_path / name, files(tmp_path), open

    def refuse(path: object, *args: object, **kwargs: object) -> object:
        if Path(path) == unreadable:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    lines = refused(segment, tmp_path / "in", tmp_path / "out", threshold=0.4)
    assert lines[0] == "1 scan(s) left out:"
    assert lines[1].startswith(f"{unreadable}: ")
    assert len(lines) == 2
    assert files(tmp_path) == before


def test_the_evaluator_is_monais(segment: Callable, scans: Path, tmp_path: Path) -> None:
    workflow: ConfigWorkflow = segment(scans, tmp_path / "out")
    assert type(workflow.evaluator) is monai.engines.SupervisedEvaluator
    assert workflow.evaluator.state.iteration == 2


def test_scans_are_saved_while_the_next_is_computed_and_all_are_there_at_the_end(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events, write_files, compute = [], masks.Derivative.write, PredictionsInferer.__call__

    def write_slowly(self: object, scan: str, *args: object) -> None:
        time.sleep(1)
        write_files(self, scan, *args)
        events.append("saved")

    monkeypatch.setattr(masks.Derivative, "write", write_slowly)
    monkeypatch.setattr(PredictionsInferer, "__call__", lambda *args: events.append("computed") or compute(*args))
    with caplog.at_level("INFO", "meshnet"):
        segment(scans, tmp_path / "out")
    assert events == ["computed", "computed", "saved", "saved"]
    assert files(tmp_path / "out") == sorted([*SHARED, *made("sub-1"), *made("sub-2")])
    assert any(line.startswith("2 scan(s) in ") for line in caplog.messages)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_scans_that_a_dead_loader_did_not_give_are_named(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MONAI's thread prints what ended it, and the loader just ends."""
    read = masks.Scans._transform

    def killed(self: object, i: int) -> dict:
        if i:
            raise SystemExit
        return read(self, i)

    monkeypatch.setattr(masks.Scans, "_transform", killed)
    lines = refused(segment, scans, tmp_path / "out")
    assert lines[1].startswith(f"{scans / 'sub-2' / 'anat' / 'sub-2_T2w.nii.gz'}: was not read")
    assert [n for n in files(tmp_path / "out") if "sub-1" in n] == made("sub-1")


def test_shards_share_a_folder_and_its_table_has_all(segment: Callable, scans: Path, tmp_path: Path) -> None:
    for shard in ("2/3", "1/3", "3/3"):
        segment(scans, tmp_path / "out", shard=shard)
    assert files(tmp_path / "out") == sorted([*SHARED, *made("sub-1"), *made("sub-2")])
    assert len((tmp_path / "out" / "lesions.tsv").read_text().splitlines()) == 3


UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 4], "strides": [2]}


@pytest.mark.parametrize(
    ("definition", "overrides", "shown"),
    [
        ({}, {}, True),
        ({}, {"norm_adaptation": 0.35}, False),
        ({"norm_adaptation": 0.2}, {}, False),
        ({"norm": None}, {}, False),
        (UNET, {}, False),
    ],
)
def test_a_scan_without_a_lesion_says_what_to_try_where_it_can_be_tried(
    weights: Path, segment: Callable, scans: Path, caplog: pytest.LogCaptureFixture,
    definition: dict, overrides: dict, shown: bool,
) -> None:  # fmt: skip
    card = json.loads(weights.with_suffix(".json").read_text())
    card["network_def"] = definition if "_target_" in definition else card["network_def"] | definition
    path = scans.parent / "any.pt"
    torch.save(ConfigParser(card["network_def"]).get_parsed_content("").state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(card))
    with caplog.at_level("INFO"):
        segment(scans / "sub-1", scans.parent / "out", ckpt_path=str(path), min_volume=1e9, **overrides)
    assert ("no lesion found; if its skull was removed, try --norm_adaptation 0.35" in caplog.text) is shown


def test_a_scan_with_a_lesion_says_nothing_of_the_kind(
    segment: Callable, scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        segment(scans / "sub-1", tmp_path / "out")
    assert "no lesion found" not in caplog.text


def test_an_answer_that_is_no_number_is_a_line_and_no_empty_mask(
    segment: Callable, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = PredictionsInferer.__call__
    monkeypatch.setattr(PredictionsInferer, "__call__", lambda *args: compute(*args) * torch.nan)
    lines = refused(segment, scans, tmp_path / "out")
    assert lines[0] == "2 scan(s) left out:"
    assert lines[1].endswith("sub-1_T2w.nii.gz: the network's answer is no number; give --amp false, or other weights")
    assert not [*(tmp_path / "out").rglob("*mask*")]
