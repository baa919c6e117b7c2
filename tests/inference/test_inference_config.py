"""configs/inference.json turns scans into masks in each scan's own grid, with their volumes."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import INFERENCE, REAL, ROOT, TRAIN, bundle
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import ScaleIntensityd
from nibabel.processing import conform, resample_from_to
from scipy import ndimage
from sklearn.metrics import f1_score

from scripts.common.errors import describe
from scripts.networks import interleaved
from tests.inference.conftest import phantom

WEIGHTS = ROOT / "models" / "model_5.pt"


@pytest.fixture(scope="module")
def scans(cohort_dir: Path) -> list[dict]:
    """The scans of four subjects: one sagittal, one whose mask has a scale slope, one of anisotropic voxels."""
    training = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    return sorted(training, key=lambda scan: scan["image"])[2:6]


@pytest.fixture(scope="module")
def segmented(scans: list[dict], cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Their masks and probabilities, made by the command of a user from another directory, and what it printed.

    Another scan beside them is broken.
    """
    output = tmp_path_factory.mktemp("segmented")
    for scan in scans:
        (output / "in" / scan["image"]).parent.mkdir(parents=True)
        shutil.copy(cohort_dir / scan["image"], output / "in" / scan["image"])
    broken = output / "in" / "sub-0_T2w.nii.gz"
    broken.write_bytes((output / "in" / scans[0]["image"]).read_bytes()[:-200])
    (output / "in" / "sub-1_T2w.nii.gz").symlink_to(".git/annex/objects/gone")
    result = bundle(
        "--config_file", INFERENCE, "--input", output / "in", "--output_dir", output / "out", "--device", "cpu",
        "--save_probability", "true", "--qc", "false", "--flip_averaging", "false", "--threshold", 0.5,
        "--min_volume", 0, "--ckpt_path", WEIGHTS,
        cwd=output,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr[-2000:]
    lines = result.stderr.strip().splitlines()[-3:]
    assert lines[0] == "2 scan(s) left out:"
    assert lines[1].startswith(f"{broken}: not a readable NIfTI image")
    assert lines[2].startswith(f"{output / 'in' / 'sub-1_T2w.nii.gz'}: a git-annex link")
    return output / "out", result.stdout


def beside(scan: dict, output: Path, ending: str) -> Path:
    return output / scan["image"].replace("_T2w.nii.gz", f"_desc-lesion_{ending}")


def mask_of(scan: dict, output: Path, kind: str = "mask") -> nib.Nifti1Image:
    return nib.load(beside(scan, output, f"{kind}.nii.gz"))


def test_masks_have_the_grid_of_their_scans(segmented: tuple, scans: list[dict], cohort_dir: Path) -> None:
    orientations, anisotropic = set(), 0
    for scan in scans:
        image, mask = nib.load(cohort_dir / scan["image"]), mask_of(scan, segmented[0])
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) <= {0, 1}
        orientations.add(nib.aff2axcodes(image.affine))
        anisotropic += len(set(np.round(image.header.get_zooms(), 3))) > 1
    assert ("P", "S", "R") in orientations
    assert anisotropic >= 1


def test_masks_lie_on_the_lesions(segmented: tuple, scans: list[dict], cohort_dir: Path) -> None:
    dice = [
        f1_score(
            (nib.load(cohort_dir / s["label"]).get_fdata() > 0).ravel(), mask_of(s, segmented[0]).get_fdata().ravel()
        )
        for s in scans
        if s["lesion_volume"] > 50_000
    ]
    assert len(dice) >= 3
    assert np.median(dice) > 0.5


def test_mask_is_where_the_probability_is_at_least_a_half(segmented: tuple, scans: list[dict]) -> None:
    for scan in scans:
        probability = mask_of(scan, segmented[0], "probseg").get_fdata()
        assert 0 <= probability.min() <= probability.max() <= 1
        np.testing.assert_array_equal(mask_of(scan, segmented[0]).get_fdata(), probability >= 0.5)


def test_the_folder_is_a_bids_derivative_with_a_sidecar_for_each_mask(segmented: tuple, scans: list[dict]) -> None:
    output = segmented[0]
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    for scan in scans:
        sidecar = json.loads(beside(scan, output, "mask.json").read_text())
        assert sidecar["GeneratedBy"] == description["GeneratedBy"]
        assert sidecar["GeneratedBy"][0]["WeightsSHA256"] == weights
        assert sidecar["GeneratedBy"][0]["Settings"]["threshold"] == 0.5


def test_the_table_and_the_log_say_what_the_masks_hold(segmented: tuple, scans: list[dict]) -> None:
    output, printed = segmented
    rows = {Path(row["scan"]).name: row for row in csv.DictReader((output / "lesions.tsv").open(), delimiter="\t")}
    assert len(rows) == len(scans)
    for scan in scans:
        name = Path(scan["image"]).name
        row, mask = rows[name], mask_of(scan, output)
        volume = float(mask.get_fdata().sum() * abs(np.linalg.det(mask.affine[:3, :3])))
        assert float(row["lesion_volume"]) == pytest.approx(volume, rel=1e-5, abs=0.1)
        assert float(row["left_volume"]) + float(row["right_volume"]) == pytest.approx(volume, rel=1e-5, abs=0.1)
        assert int(row["lesions"]) == ndimage.label(mask.get_fdata(), np.ones((3, 3, 3)))[1]
        assert (output / row["mask"]).is_file()
        assert f"{name}: lesion {volume:,.0f} mm3" in printed
    assert "SIMULATED" in printed


@pytest.mark.slow
def test_a_volume_that_is_taken_in_parts_is_put_back_on_the_scans_grid(
    segment: Callable, scans: list[dict], cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, image = str(ROOT / "models" / "model_5.pt"), cohort_dir / scans[0]["image"]
    settings = {"ckpt_path": weights, "threshold": 0.3, "save_probability": True, "amp": False}
    segment(image, tmp_path / "whole", **settings)
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", 1000)
    segment(image, tmp_path / "parts", **settings)
    whole, parts = (nib.load(next((tmp_path / name).rglob("*probseg.nii.gz"))) for name in ("whole", "parts"))
    assert np.allclose(parts.affine, nib.load(image).affine, atol=1e-4)
    assert whole.get_fdata().max() > 0.3
    np.testing.assert_allclose(parts.get_fdata(), whole.get_fdata(), atol=1e-4)


@pytest.mark.slow
def test_threshold_min_volume_and_flip_averaging_are_overrides(
    segment: Callable, scans: list[dict], cohort_dir: Path, tmp_path: Path
) -> None:
    weights, image = str(ROOT / "models" / "model_5.pt"), cohort_dir / scans[0]["image"]
    overrides = {"threshold": 0.3, "min_volume": 20_000, "ckpt_path": weights, "save_probability": "True"}
    workflow = segment(image, tmp_path / "flips", **overrides, flip_averaging="true")
    segment(image, tmp_path / "plain", **overrides, flip_averaging="false")
    (path,) = (tmp_path / "flips").rglob("*mask.nii.gz")
    mask = nib.load(path)
    one, other = (nib.load(p).get_fdata() for p in sorted(tmp_path.rglob("*probseg.nii.gz")))
    parts, n = ndimage.label(one >= 0.3, np.ones((3, 3, 3)))
    voxel = abs(np.linalg.det(mask.affine[:3, :3]))
    large = [i for i in range(1, n + 1) if (parts == i).sum() * voxel >= 20_000]
    np.testing.assert_array_equal(mask.get_fdata(), np.isin(parts, large))
    assert np.abs(one - other).max() > 0
    settings = workflow.parser.get_parsed_content("derivative").made_by["Settings"]
    assert settings == {
        "amp": False,
        "amp_dtype": "auto",
        "threshold": 0.3,
        "min_volume": 20_000,
        "flip_averaging": True,
        "norm_adaptation": 0,
        "norm_shift_limit": None,
        "crop_to_head": True,
        "runtime": "torch",
    }


def test_a_share_of_the_scans_own_statistics_is_an_override_and_may_be_in_the_card(
    segment: Callable, weights: Path, scans: list[dict], cohort_dir: Path, tmp_path: Path
) -> None:
    card, image = json.loads(weights.with_suffix(".json").read_text()), cohort_dir / scans[0]["image"]
    settings = {"save_probability": True, "amp": False, "ckpt_path": str(weights)}
    segment(image, tmp_path / "plain", **settings)
    segment(image, tmp_path / "override", **settings, norm_adaptation=0.4)
    card["network_def"]["norm_adaptation"] = 0.4
    shutil.copy(weights, tmp_path / "adaptive.pt")
    (tmp_path / "adaptive.json").write_text(json.dumps(card))
    workflow = segment(image, tmp_path / "card", **settings | {"ckpt_path": str(tmp_path / "adaptive.pt")})
    assert workflow.parser.get_parsed_content("derivative").made_by["Settings"]["norm_adaptation"] == 0.4
    segment(image, tmp_path / "off", **settings | {"ckpt_path": str(tmp_path / "adaptive.pt")}, norm_adaptation=0)
    plain, override, by_card, off = (
        nib.load(next((tmp_path / name).rglob("*probseg.nii.gz"))).get_fdata()
        for name in ("plain", "override", "card", "off")
    )
    assert np.array_equal(override, by_card)
    assert np.array_equal(plain, off)
    assert np.abs(plain - override).max() > 0.001


@pytest.mark.parametrize(("limit", "share"), [(0.0, 0.4), (1e6, 0)])
def test_a_card_may_limit_the_share_to_scans_beyond_a_shift(
    segment: Callable, weights: Path, scans: list[dict], cohort_dir: Path, tmp_path: Path, limit: float, share: float
) -> None:
    card, image = json.loads(weights.with_suffix(".json").read_text()), cohort_dir / scans[0]["image"]
    card["network_def"] |= {"norm_adaptation": 0.4, "norm_shift_limit": limit}
    shutil.copy(weights, tmp_path / "limited.pt")
    (tmp_path / "limited.json").write_text(json.dumps(card))
    settings = {"ckpt_path": str(tmp_path / "limited.pt"), "save_probability": True, "amp": False}
    workflow = segment(image, tmp_path / "by_card", **settings)
    assert workflow.parser.get_parsed_content("derivative").made_by["Settings"]["norm_shift_limit"] == limit
    segment(image, tmp_path / "override", **settings, norm_adaptation=share)  # which knows no limit
    by_card, override = (
        nib.load(next((tmp_path / name).rglob("*probseg.nii.gz"))).get_fdata() for name in ("by_card", "override")
    )
    assert np.array_equal(by_card, override)
    for name in ("by_card", "override"):
        (row,) = csv.DictReader((tmp_path / name / "lesions.tsv").open(), delimiter="\t")
        assert float(row["norm_adaptation"]) == share


def test_the_card_decides_network_grid_intensities_and_defaults(
    segment: Callable, weights: Path, scans: list[dict], cohort_dir: Path, tmp_path: Path
) -> None:
    card = json.loads(weights.with_suffix(".json").read_text())
    card |= {"threshold": 0.25, "min_volume": 500, "flip_averaging": True}
    card["intensity"] = [{"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 0.5}]
    shutil.copy(weights, tmp_path / "other.pt")
    (tmp_path / "other.json").write_text(json.dumps(card))
    image = cohort_dir / scans[0]["image"]
    parser = segment(image, tmp_path / "out", ckpt_path=str(tmp_path / "other.pt")).parser
    settings = parser.get_parsed_content("derivative").made_by["Settings"]
    assert (settings["threshold"], settings["min_volume"], settings["flip_averaging"]) == (0.25, 500, True)
    assert sum(p.numel() for p in parser.get_parsed_content("network").parameters()) == 27 + 1 + 2 + 4
    x = parser.get_parsed_content("preprocessing")({"image": str(image)})["image"]
    assert x.shape == (1, 24, 32, 24)
    assert x.max() == 0.5
    assert x.dtype == torch.float32


def test_a_path_beside_the_scan_does_not_stop_it(
    segment: Callable, scans: list[dict], cohort_dir: Path, tmp_path: Path
) -> None:
    """MONAI Label (0.8.5) gives an ``image_path``, which MONAI's Spacingd (1.6.1) takes for the image's meta data."""
    image = str(cohort_dir / scans[0]["image"])
    preprocessing = segment(image, tmp_path / "out").parser.get_parsed_content("preprocessing")
    ours, alone = (preprocessing(item)["image"] for item in ({"image": image, "image_path": image}, {"image": image}))
    assert torch.equal(ours, alone)


def test_a_bright_part_is_found_in_the_scans_own_grid(segment: Callable, tmp_path: Path) -> None:
    """Against the network's definition: what is above half of the range is lesion."""
    data, truth = np.tile(np.linspace(9, 11, 20, dtype=np.float32), (24, 30, 1)), np.zeros((24, 30, 20), bool)
    truth[14:20, 8:23, 6:15] = True
    data[truth], data[0, 0, 0] = 100, 0
    affine = np.array([[0, 0, 3.0, 5], [-2.0, 0, 0, 7], [0, 2.0, 0, -9], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "scan_T2w.nii.gz")
    segment(tmp_path / "scan_T2w.nii.gz", tmp_path / "out")
    mask = nib.load(tmp_path / "out" / "scan_desc-lesion_mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, affine)
    assert f1_score(truth.ravel(), mask.get_fdata().ravel()) > 0.85
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".bidsignore",
        "dataset_description.json",
        "lesions.json",
        "lesions.tsv",
        "scan_desc-lesion_mask.json",
        "scan_desc-lesion_mask.nii.gz",
    ]


def test_a_rounded_pixdim_moves_no_mask_and_sides_that_no_header_tells_are_not_given(
    segment: Callable, tmp_path: Path
) -> None:
    """Stored LIA with the sform only, for which MONAI's own reader takes the qform that was never set."""
    affine = np.array([[-3.9375, 0, 0, 46], [0, 0, 3.9375, -40], [0, -3.9375, 0, 45], [0, 0, 0, 1]])
    data = phantom().transpose(0, 2, 1)[:, ::-1].copy()
    for name, size, code in (("exact", 3.9375, 1), ("rounded", 3.938, 1), ("untold", 3.9375, 0)):
        header = nib.Nifti1Header()
        header.set_data_shape(data.shape)
        header.set_data_dtype(np.float32)
        header.set_sform(affine, code)
        header["pixdim"][1:4], header["vox_offset"] = size, 352
        (tmp_path / f"{name}.nii").write_bytes(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    segment(tmp_path / "*.nii", tmp_path / "out", qc=True)
    masks = {p.name.split("_")[0]: nib.load(p) for p in (tmp_path / "out").glob("*mask.nii.gz")}
    with (tmp_path / "out" / "lesions.tsv").open() as file:
        rows = {row["mask"].split("_")[0]: row for row in csv.DictReader(file, delimiter="\t")}
    for name in ("exact", "rounded"):
        np.testing.assert_allclose(masks[name].affine, affine, atol=1e-5)
        truth, mask = data == 100, masks[name].get_fdata() > 0
        assert f1_score(truth.ravel(), mask.ravel()) > 0.85
        assert float(rows[name]["left_volume"]) == float(rows[name]["lesion_volume"]) > 0  # as x of the part says
    assert {key for key in rows["exact"] if rows["exact"][key] != rows["rounded"][key]} == {"mask", "scan"}
    assert [rows["untold"][key] for key in ("left_volume", "right_volume", "laterality")] == ["n/a"] * 3
    assert float(rows["untold"]["lesion_volume"]) > 0


def test_an_offset_of_a_scan_that_is_smaller_than_the_grid_changes_no_mask(segment: Callable, tmp_path: Path) -> None:
    for offset in (0, 100, 4000):
        nib.save(nib.Nifti1Image(phantom() + np.float32(offset), np.diag([2.0, 2, 3, 1])), tmp_path / f"{offset}.nii")
    segment(tmp_path / "*.nii", tmp_path / "out")
    masks = [nib.load(p).get_fdata() for p in sorted((tmp_path / "out").glob("*mask.nii.gz"))]
    assert len(masks) == 3
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    assert f1_score((phantom() == 100).ravel(), masks[0].ravel()) > 0.85


def test_scans_of_one_name_in_two_folders_keep_a_mask_each(
    segment: Callable, scans: list[dict], cohort_dir: Path, tmp_path: Path
) -> None:
    for folder, scan in zip(("visit 1", "visit 2"), scans, strict=False):
        (tmp_path / folder).mkdir()
        shutil.copy(cohort_dir / scan["image"], tmp_path / folder / "t2.nii.gz")
    segment(tmp_path / "visit*" / "*.nii.gz", tmp_path / "out", qc=True)
    masks = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert masks == ["visit 1/t2_desc-lesion_mask.nii.gz", "visit 2/t2_desc-lesion_mask.nii.gz"]
    for mask in masks:
        picture = (tmp_path / "out" / mask.replace("mask.nii.gz", "qc.png")).read_bytes()
        assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "overrides", [{"threshold": 2}, {"min_volume": -1}, {"flip_averaging": "maybe"}, {"qc": 3}, {"norm_adaptation": 2}]
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_written(
    segment: Callable, scans: list[dict], cohort_dir: Path, tmp_path: Path, overrides: dict
) -> None:
    with pytest.raises(RuntimeError) as error:
        segment(cohort_dir / scans[0]["image"], tmp_path / "out", **overrides)
    ((key, value),) = overrides.items()
    assert f"{key} {value!r}" in describe(error.value)
    assert not (tmp_path / "out").exists()


def test_inference_preprocesses_as_training_does() -> None:
    train, inference = (json.loads(Path(path).read_text()) for path in (TRAIN, INFERENCE))
    theirs = [t for t in train["train"]["deterministic_transforms"] if isinstance(t, str) or t["keys"] != "label"]
    for_training = {t["_target_"]: t for t in theirs if isinstance(t, dict)}
    delete, *ours = inference["preprocessing"]["transforms"]
    assert (delete["_target_"], delete["keys"]) == ("DeleteItemsd", "image_path")  # which training never has
    order = [t if isinstance(t, str) else t["_target_"] for t in theirs]
    order = [name for name in order if name != "SelectItemsd"]
    of_weights = {"%intensity": "$@weights.intensity"}
    assert [t if isinstance(t, str) else t["_target_"] for t in ours] == [of_weights.get(name, name) for name in order]
    ours = [t for t in ours if not isinstance(t, str)]
    assert next(t for t in ours if t["_target_"] == "Spacingd").pop("dtype") == "$torch.float32"  # whole scans: memory
    for step in ours:
        theirs = for_training.get(step["_target_"], {})
        for key in set(step) - {"_target_", "keys", "pixdim", "spatial_size"}:
            expected = theirs[key][0] if isinstance(theirs[key], list) else theirs[key]
            ours_of_weights = json.loads(json.dumps(step[key]).replace("$@weights.", "@"))
            assert ours_of_weights == expected, (step["_target_"], key)


def test_zoo_properties_are_all_there(scans: list[dict], cohort_dir: Path) -> None:
    workflow = ConfigWorkflow(INFERENCE, workflow_type="infer", input=str(cohort_dir), logging_file=False)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"input": ""}, "--input is missing: give a NIfTI file, a folder or a glob"),
        ({"input": "/nowhere/scan.nii.gz"}, "--input /nowhere/scan.nii.gz: no such file or folder"),
        ({"ckpt_path": "/nowhere/model.pt"}, "/nowhere/model.pt: no such file; train first"),
    ],
)
def test_wrong_input_is_one_line(segment: Callable, tmp_path: Path, overrides: dict, line: str) -> None:
    paths = {"input": tmp_path, "output_dir": tmp_path / "out"}
    with pytest.raises(RuntimeError) as error:
        segment(**{**paths, **overrides})
    assert describe(error.value).startswith(line)


HEAD = REAL / "anatomy_colin27_t1.nii.gz"


@pytest.mark.slow
@pytest.mark.skipif(not HEAD.is_file(), reason="the real head is not beside this checkout")
@pytest.mark.parametrize("sagittal_and_anisotropic", [False, True])
def test_preprocessing_conforms_a_real_head_as_freesurfer_does(sagittal_and_anisotropic: bool, tmp_path: Path) -> None:
    """Against nibabel's conform, which follows mri_convert --conform; docs/experiments/2026-11-20-conforming.md."""
    path = HEAD
    if sagittal_and_anisotropic:
        head = nib.load(HEAD)
        affine = nib.affines.from_matvec(np.diag([1.2, 0.9, 1.0]), head.affine[:3, 3])
        head = resample_from_to(head, ((150, 241, 181), affine), order=1)
        psr = nib.orientations.axcodes2ornt("PSR")
        path = tmp_path / "sagittal.nii.gz"
        nib.save(head.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), psr)), path)
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    grid = {"orientation": "RAS", "spacing": [1.0] * 3, "spatial_size": [224] * 3}
    scaling = ScaleIntensityd("image")  # from the least to the most
    parser.update({"weights": SimpleNamespace(**grid, intensity=scaling)})
    parser.parse()
    ours = parser.get_parsed_content("preprocessing")({"image": str(path)})["image"]
    conformed = conform(nib.load(path), (224,) * 3, (1.0,) * 3, order=0, orientation="RAS")  # for its affine
    assert np.abs(ours.affine.numpy() - conformed.affine).max() < 0.21  # mm
    on_our_grid = resample_from_to(nib.load(path), ((224,) * 3, ours.affine.numpy()), order=1).get_fdata()
    expected = (on_our_grid - on_our_grid.min()) / np.ptp(on_our_grid)
    inside = ours[0].numpy() > 0.05
    assert np.abs(ours[0].numpy() - expected)[inside].mean() < (0.002 if sagittal_and_anisotropic else 1e-7)


@pytest.mark.parametrize(("orientation", "shift"), [("RAS", (1, 0, 0)), ("PSR", (0, -1, 0)), ("IAL", (0, 0, -1))])
def test_scans_are_turned_to_the_orientation_of_the_card(
    weights: Path, segment: Callable, orientation: str, shift: tuple[int, ...], tmp_path: Path
) -> None:
    """The network finds what has something bright one voxel behind it along its first axis."""
    state, card = torch.load(weights), json.loads(weights.with_suffix(".json").read_text())
    state["layers.0.0.weight"] = state["layers.0.0.weight"].roll(-1, dims=2)
    torch.save(state, tmp_path / "mine.pt")
    card |= {"orientation": orientation, "spacing": [3.0] * 3, "spatial_size": [32] * 3}
    (tmp_path / "mine.json").write_text(json.dumps(card))
    image = np.tile(np.linspace(9, 11, 20, dtype=np.float32), (24, 30, 1))
    image[8:14, 9:20, 5:12] = 100
    nib.save(nib.Nifti1Image(image, np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "sub-1_T2w.nii.gz")
    segment(tmp_path / "sub-1_T2w.nii.gz", tmp_path / "out", ckpt_path=str(tmp_path / "mine.pt"))
    mask = np.asarray(nib.load(tmp_path / "out" / "sub-1_desc-lesion_mask.nii.gz").dataobj)
    np.testing.assert_array_equal(mask, np.roll(image > 50, shift, axis=(0, 1, 2)))


def test_another_runtime_is_refused_before_anything_is_written(
    segment: Callable, scans: list[dict], cohort_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError) as error:
        segment(cohort_dir / scans[0]["image"], tmp_path / "out", runtime="tensorrt")
    assert describe(error.value) == "runtime 'tensorrt': expected torch, openvino or auto"
    assert not (tmp_path / "out").exists()
