"""configs/inference.json turns scans into masks in each scan's own grid, with their volumes."""

import csv
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import INFERENCE, TRAIN, bundle
from monai.bundle import ConfigParser, ConfigWorkflow
from nibabel.processing import conform, resample_from_to
from scipy import ndimage
from sklearn.metrics import f1_score

from scripts.common.errors import InputError


@pytest.fixture(scope="module")
def segmented(trained: dict, cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The masks and probabilities of a whole BIDS folder, and what was printed."""
    output = tmp_path_factory.mktemp("segmented")
    result = bundle(
        "--config_file", INFERENCE, "--input", cohort_dir, "--output_dir", output,
        "--save_probability", True, "--qc", False, "--ckpt_path", trained["root"] / "models" / "model.pt",
        cwd=output,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return output, result.stdout


def beside(scan: dict, output: Path, ending: str) -> Path:
    return output / scan["image"].replace("_T2w.nii.gz", f"_desc-lesion_{ending}")


def mask_of(scan: dict, output: Path, kind: str = "mask") -> nib.Nifti1Image:
    return nib.load(beside(scan, output, f"{kind}.nii.gz"))


def test_masks_have_the_grid_of_their_scans(segmented: tuple, trained: dict, cohort_dir: Path) -> None:
    orientations, anisotropic = set(), 0
    for scan in trained["scans"]:
        image, mask = nib.load(cohort_dir / scan["image"]), mask_of(scan, segmented[0])
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) <= {0, 1}
        orientations.add(nib.aff2axcodes(image.affine))
        anisotropic += len(set(np.round(image.header.get_zooms(), 3))) > 1
    assert ("P", "S", "R") in orientations
    assert anisotropic >= 2


def test_masks_lie_on_the_lesions(segmented: tuple, trained: dict, cohort_dir: Path) -> None:
    dice = [
        f1_score(
            (nib.load(cohort_dir / s["label"]).get_fdata() > 0).ravel(), mask_of(s, segmented[0]).get_fdata().ravel()
        )
        for s in trained["scans"]
        if s["lesion_volume"] > 50_000
    ]
    assert len(dice) >= 6
    assert np.median(dice) > 0.5


def test_mask_is_where_the_probability_is_at_least_a_half(segmented: tuple, trained: dict) -> None:
    for scan in trained["scans"]:
        probability = mask_of(scan, segmented[0], "probseg").get_fdata()
        assert 0 <= probability.min() <= probability.max() <= 1
        np.testing.assert_array_equal(mask_of(scan, segmented[0]).get_fdata(), probability >= 0.5)


def test_the_folder_is_a_bids_derivative_with_a_sidecar_for_each_mask(segmented: tuple, trained: dict) -> None:
    output = segmented[0]
    description = json.loads((output / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    weights = hashlib.sha256((trained["root"] / "models" / "model.pt").read_bytes()).hexdigest()
    for scan in trained["scans"]:
        sidecar = json.loads(beside(scan, output, "mask.json").read_text())
        assert sidecar["GeneratedBy"] == description["GeneratedBy"]
        assert sidecar["GeneratedBy"][0]["WeightsSHA256"] == weights
        assert sidecar["GeneratedBy"][0]["Settings"]["threshold"] == 0.5


def test_the_table_and_the_log_say_what_the_masks_hold(segmented: tuple, trained: dict) -> None:
    output, printed = segmented
    rows = {Path(row["scan"]).name: row for row in csv.DictReader((output / "lesions.tsv").open(), delimiter="\t")}
    assert len(rows) == len(trained["scans"])
    for scan in trained["scans"]:
        name = Path(scan["image"]).name
        row, mask = rows[name], mask_of(scan, output)
        volume = float(mask.get_fdata().sum() * abs(np.linalg.det(mask.affine[:3, :3])))
        assert float(row["lesion_volume"]) == pytest.approx(volume, rel=1e-5, abs=0.1)
        assert float(row["left_volume"]) + float(row["right_volume"]) == pytest.approx(volume, rel=1e-5, abs=0.1)
        assert int(row["lesions"]) == ndimage.label(mask.get_fdata(), np.ones((3, 3, 3)))[1]
        assert (output / row["mask"]).is_file()
        assert f"{name}: lesion {volume:,.0f} mm3" in printed
    assert "SIMULATED" in printed


def infer(trained: dict, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    weights = trained["root"] / "models" / "model.pt"
    return bundle("--config_file", INFERENCE, "--ckpt_path", weights, *arguments, cwd=cwd)


def test_one_file_without_a_label_beside_it(trained: dict, cohort_dir: Path, tmp_path: Path) -> None:
    shutil.copy(cohort_dir / trained["scans"][0]["image"], tmp_path / "scan_T2w.nii.gz")
    result = infer(trained, "--input", "scan_T2w.nii.gz", "--output_dir", "out", "--qc", False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "dataset_description.json",
        "lesions.json",
        "lesions.tsv",
        "scan_desc-lesion_mask.json",
        "scan_desc-lesion_mask.nii.gz",
    ]


def test_scans_of_one_name_in_two_folders_keep_a_mask_each(trained: dict, cohort_dir: Path, tmp_path: Path) -> None:
    for folder, scan in zip(("visit 1", "visit 2"), trained["scans"], strict=False):
        (tmp_path / folder).mkdir()
        shutil.copy(cohort_dir / scan["image"], tmp_path / folder / "t2.nii.gz")
    result = infer(trained, "--input", tmp_path / "visit*" / "*.nii.gz", "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr[-2000:]
    masks = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.nii.gz"))
    assert masks == ["visit 1/t2_desc-lesion_mask.nii.gz", "visit 2/t2_desc-lesion_mask.nii.gz"]
    for mask in masks:
        picture = (tmp_path / "out" / mask.replace("mask.nii.gz", "qc.png")).read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_bad_scans_are_left_out_with_a_line_and_what_is_done_is_not_done_again(
    trained: dict, cohort_dir: Path, tmp_path: Path
) -> None:
    scans, bids, out = trained["scans"], tmp_path / "bids", tmp_path / "bids" / "derivatives" / "meshnet"
    for i in range(3):
        (bids / f"sub-{i}").mkdir(parents=True)
        shutil.copy(cohort_dir / scans[i]["image"], bids / f"sub-{i}" / f"sub-{i}_T2w.nii.gz")
    broken = bids / "sub-1" / "sub-1_T2w.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    (bids / "sub-3_T2w.nii.gz").symlink_to(".git/annex/objects/gone")
    arguments = ("--input", bids, "--output_dir", out, "--qc", False)

    first = infer(trained, *arguments)
    assert first.returncode == 1
    last = first.stderr.strip().splitlines()[-3:]
    assert last[0] == "2 scan(s) left out:"
    assert last[1].startswith(f"{broken}: not a readable NIfTI image")
    assert last[2].startswith(f"{bids / 'sub-3_T2w.nii.gz'}: a git-annex link")
    made = {p.name: p.stat().st_mtime_ns for p in out.rglob("*mask.nii.gz")}
    assert sorted(made) == ["sub-0_desc-lesion_mask.nii.gz", "sub-2_desc-lesion_mask.nii.gz"]

    broken.write_bytes(whole)
    (bids / "sub-3_T2w.nii.gz").unlink()
    (out / "sub-2" / "sub-2_desc-lesion_mask.json").unlink()  # as a kill before it was written leaves it
    second = infer(trained, *arguments)
    assert second.returncode == 0, second.stderr
    assert "1 of 3 scans have their masks by these weights already" in second.stdout
    again = {p.name: p.stat().st_mtime_ns for p in out.rglob("*mask.nii.gz")}
    assert [name for name in sorted(again) if again[name] != made.get(name)] == [
        "sub-1_desc-lesion_mask.nii.gz",
        "sub-2_desc-lesion_mask.nii.gz",
    ]
    assert len((out / "lesions.tsv").read_text().splitlines()) == 4

    third = infer(trained, *arguments)
    assert third.returncode == 0, third.stderr
    assert {p.name: p.stat().st_mtime_ns for p in out.rglob("*mask.nii.gz")} == again
    fourth = infer(trained, *arguments, "--threshold", 0.4)
    assert fourth.returncode == 0, fourth.stderr
    assert "have their masks" not in fourth.stdout


def test_small_lesions_can_be_removed_and_flips_averaged(
    segmented: tuple, trained: dict, cohort_dir: Path, tmp_path: Path
) -> None:
    scan = trained["scans"][0]
    options = ("--min_volume", 20_000, "--flip_averaging", True, "--qc", False)
    result = infer(trained, "--input", cohort_dir / scan["image"], "--output_dir", tmp_path, *options)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*mask.nii.gz")
    mask = nib.load(path)
    parts, n = ndimage.label(mask.get_fdata(), np.ones((3, 3, 3)))
    voxel = abs(np.linalg.det(mask.affine[:3, :3]))
    assert all((parts == i).sum() * voxel >= 20_000 for i in range(1, n + 1))
    assert not np.array_equal(mask.get_fdata(), mask_of(scan, segmented[0]).get_fdata())


def test_inference_preprocesses_as_training_does() -> None:
    train, inference = (json.loads(Path(path).read_text()) for path in (TRAIN, INFERENCE))
    for_training = {t["_target_"]: t for t in train["train"]["deterministic_transforms"]}
    steps = [t["_target_"] for t in inference["preprocessing"]["transforms"]]
    assert steps == [name for name in for_training if name not in ("SelectItemsd", "Lambdad")]
    for ours in inference["preprocessing"]["transforms"]:
        theirs = for_training[ours["_target_"]]
        for key in set(ours) - {"keys", "pixdim", "spatial_size"}:
            expected = theirs[key][0] if isinstance(theirs[key], list) else theirs[key]
            assert ours[key] == expected, (ours["_target_"], key)


def test_width_and_grid_come_from_the_card_of_the_weights(trained: dict) -> None:
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    parser["ckpt_path"] = str(trained["root"] / "models" / "model.pt")
    parser.parse()
    assert parser.get_parsed_content("channels") == 8
    assert parser.get_parsed_content("spacing") == [8, 8, 8]
    assert parser.get_parsed_content("spatial_size") == [32, 32, 32]


def test_zoo_properties_are_all_there(trained: dict, cohort_dir: Path) -> None:
    ckpt_path = str(trained["root"] / "models" / "model.pt")
    workflow = ConfigWorkflow(INFERENCE, workflow_type="infer", input=str(cohort_dir), ckpt_path=ckpt_path)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({}, "--input is missing: give a NIfTI file, a folder or a glob"),
        ({"input": "/nowhere/scan.nii.gz"}, "--input /nowhere/scan.nii.gz: no NIfTI file"),
    ],
)
def test_wrong_input_is_one_line(overrides: dict, line: str) -> None:
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    parser.update(overrides)
    parser.parse()
    with pytest.raises(InputError, match=line):
        parser.get_parsed_content("scans")


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    parser = ConfigParser()
    parser.read_config(INFERENCE)
    parser["ckpt_path"] = str(tmp_path / "model.pt")
    parser.parse()
    with pytest.raises(InputError, match="no such file; train first"):
        parser.get_parsed_content("network")


HEAD = Path(__file__).resolve().parents[3] / "shared" / "real" / "anatomy_colin27_t1.nii.gz"


@pytest.mark.skipif(not HEAD.is_file(), reason=f"the real head is not here: {HEAD}")
@pytest.mark.parametrize("sagittal_and_anisotropic", [False, True])
def test_preprocessing_conforms_a_real_head_as_freesurfer_does(sagittal_and_anisotropic: bool, tmp_path: Path) -> None:
    """Against nibabel's conform, which follows mri_convert --conform; the figures are in docs/recipe.md."""
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
    parser.update({"spacing": [1.0] * 3, "spatial_size": [256] * 3})
    parser.parse()
    ours = parser.get_parsed_content("preprocessing")({"image": str(path)})["image"]
    conformed = conform(nib.load(path), (256,) * 3, (1.0,) * 3, order=1, orientation="RAS")
    assert np.abs(ours.affine.numpy() - conformed.affine).max() < 0.21  # mm
    on_our_grid = resample_from_to(nib.load(path), ((256,) * 3, ours.affine.numpy()), order=1).get_fdata()
    expected = (on_our_grid - on_our_grid.min()) / np.ptp(on_our_grid)
    inside = ours[0].numpy() > 0.05
    assert np.abs(ours[0].numpy() - expected)[inside].mean() < (0.002 if sagittal_and_anisotropic else 1e-7)
