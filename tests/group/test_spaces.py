"""Masks come to the right place in other spaces: simulated heads, moved by transforms that are known."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas
import pytest
from conftest import REAL
from monai.utils import optional_import
from nibabel.affines import apply_affine, from_matvec
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.group import spaces
from scripts.group.spaces import (
    T1W,
    TEMPLATE,
    correlation_ratio,
    edge_fit,
    in_space,
    normalize,
    sidecar_of,
    template,
)
from scripts.inference.derivative import NAME
from scripts.simulation.anatomy import CENTRE, box, load_head
from scripts.simulation.lesions import load_mask
from scripts.simulation.scanner import RANGES, simulate_scan

ants, has_ants = optional_import("ants")
needs_ants = pytest.mark.skipif(not has_ants, reason="ANTsPy is optional: pip install antspyx")
LESIONS = REAL / "lesions"
needs_lesions = pytest.mark.skipif(not LESIONS.is_dir(), reason="the real lesion masks are not beside this checkout")
HEADS = REAL / "heads"
STILL = {"turn": 0, "shift": 0, "size": [1, 1], "warp": [0, 0], "noise": [0.01, 0.03], "bias": [0.05, 0.15]}
VOXEL = 2.0
SHAPE = box(VOXEL)[0]
AFFINE = from_matvec(np.eye(3) * VOXEL, np.array(CENTRE) - VOXEL * (np.array(SHAPE) - 1) / 2)


def simulate(lesion: str, seed: int) -> dict[str, np.ndarray]:
    """T2w, T1w and lesion (D, H, W) of the template's own head, in MNI space on the grid of ``AFFINE``."""
    ranges = RANGES["patients"] | RANGES["easy"] | STILL
    setting = [load_head("MNI152", VOXEL)], [load_mask(LESIONS / lesion)], SHAPE, VOXEL
    t2w, mask = simulate_scan(*setting, np.random.default_rng(seed), ranges)
    other = np.random.default_rng(seed + 1)
    t1w, _ = simulate_scan(*setting, np.random.default_rng(seed), ranges | RANGES["T1w"], scanner=other)
    return {"T2w": t2w, "T1w": t1w, "lesion": mask.astype(np.float32)}


def places() -> np.ndarray:
    """Where the voxels of that grid are (3, D, H, W), in mm."""
    return np.moveaxis(apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1)), -1, 0)


def warped(volume: np.ndarray, mni: np.ndarray) -> np.ndarray:
    """``volume`` on the same grid, whose voxels show what is at ``mni`` (3, D, H, W; mm)."""
    voxels = np.moveaxis(apply_affine(np.linalg.inv(AFFINE), np.moveaxis(mni, 0, -1)), -1, 0)
    return ndimage.map_coordinates(volume, voxels, order=1)


def write(root: Path, volumes: dict[str, np.ndarray], affines: dict[str, np.ndarray] | None = None) -> dict[str, Path]:
    """A scan, its T1w and its mask as a dataset and our derivative have them."""
    raw, out = root / "raw" / "sub-1" / "anat", root / "out" / "sub-1" / "anat"
    mask = out / "sub-1_desc-lesion_mask.nii.gz"
    paths = {"T2w": raw / "sub-1_T2w.nii.gz", "T1w": raw / "sub-1_T1w.nii.gz", "lesion": mask}
    for key, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        data = volumes[key] > 0.5 if key == "lesion" else volumes[key] * 1000
        image = nib.Nifti1Image(data.astype(np.int16), (affines or {}).get(key, AFFINE))
        image.set_sform(image.affine, 1)
        nib.save(image, path)
    about = {"GeneratedBy": [{"Name": NAME}], "Sources": ["bids:raw:sub-1/anat/sub-1_T2w.nii.gz"]}
    sidecar_of(mask).write_text(json.dumps(about))
    return paths


def moved(points: np.ndarray, transform: Path, invert: bool = False) -> np.ndarray:
    """``points`` (n, 3; RAS mm) by a file of ITK's, which has x and y the other way round."""
    table = pandas.DataFrame(points * [-1, -1, 1], columns=["x", "y", "z"])
    found = ants.apply_transforms_to_points(3, table, [str(transform)], whichtoinvert=[invert])
    return found[["x", "y", "z"]].to_numpy() * [-1, -1, 1]


def smooth_warp(seed: int) -> np.ndarray:
    """MNI mm (3, D, H, W) of the voxels of a head that is turned, scaled, shifted and bent by up to 8 mm."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_euler("xyz", rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    bend = np.stack([ndimage.gaussian_filter(rng.standard_normal(SHAPE), 15 / VOXEL) for _ in range(3)])
    bend *= 8 / np.sqrt((bend**2).sum(0)).max()
    linear = turn @ np.diag(1 + rng.uniform(-0.06, 0.06, 3))
    centre = np.array(CENTRE).reshape(3, 1, 1, 1)
    shift = rng.uniform(-6, 6, 3).reshape(3, 1, 1, 1)
    return np.tensordot(linear, places() - centre, 1) + centre + shift + bend


@needs_ants
@needs_lesions
@pytest.mark.slow  # a registration takes half a minute
@pytest.mark.parametrize(
    ("lesion", "seed", "by"),
    [
        ("lesion_114.nii.gz", 2, "T1w"),
        ("lesion_114.nii.gz", 2, "T2w"),
        ("lesion_038.nii.gz", 4, "T1w"),
        ("lesion_038.nii.gz", 4, "T2w"),
    ],
)
def test_a_bent_head_comes_back_to_mni_within_2_mm_and_its_lesion_with_it(
    tmp_path: Path, lesion: str, seed: int, by: str
) -> None:
    volumes, mni = simulate(lesion, seed), smooth_warp(seed)
    paths = write(tmp_path, {key: warped(volume, mni) for key, volume in volumes.items()})
    prefix = tmp_path / "out" / "sub-1" / "anat" / "sub-1"
    t1w = paths["T1w"] if by == "T1w" else None
    (*_, found) = normalize(paths["T2w"], t1w, paths["lesion"], prefix, [TEMPLATE])
    mask = nib.load(found)
    truth = nib.Nifti1Image(volumes["lesion"], AFFINE)
    truth = resample_from_to(truth, mask, order=1).get_fdata() > 0.5
    got = mask.get_fdata() > 0
    assert 2 * (truth & got).sum() / (truth.sum() + got.sum()) >= 0.9
    brain = template(2)[1].get_fdata()
    voxels = apply_affine(np.linalg.inv(template(2)[0].affine), np.moveaxis(mni, 0, -1))
    in_brain = ndimage.map_coordinates(brain.astype(np.float32), np.moveaxis(voxels, -1, 0), order=0) > 0
    some = np.argwhere(in_brain)[:: max(1, in_brain.sum() // 1500)]
    back = prefix.with_name(f"sub-1_from-{TEMPLATE}_to-{by}_mode-image_xfm.h5")
    errors = np.linalg.norm(moved(apply_affine(AFFINE, some), back) - mni[(slice(None), *some.T)].T, axis=1)
    assert np.median(errors) < 2
    about = json.loads(sidecar_of(found).read_text())
    assert about["Fit"] > about["FitLimit"]
    assert about["PoorFit"] is False


@needs_ants
@needs_lesions
@pytest.mark.slow  # two registrations and a simulation
def test_a_rigid_transform_applied_by_hand_is_found_again_and_nothing_is_done_twice(tmp_path: Path) -> None:
    volumes, turn = simulate("lesion_114.nii.gz", 2), Rotation.from_euler("xyz", [4, -3, 6], degrees=True).as_matrix()
    rigid = from_matvec(turn, [5, -8, 4])  # from the T1w's mm to the T2w's
    affines = {"T2w": rigid @ AFFINE, "lesion": rigid @ AFFINE}
    paths = write(tmp_path, volumes, affines)
    prefix = tmp_path / "out" / "sub-1" / "anat" / "sub-1"
    (found,) = normalize(*(paths[key] for key in ("T2w", "T1w", "lesion")), prefix, [T1W])
    transform = prefix.with_name("sub-1_from-T2w_to-T1w_mode-image_xfm.mat")
    points = np.array([[0.0, 0, 0], [80, 0, 0], [0, 80, 0], [0, 0, 80]]) + CENTRE
    got, true = (
        moved(points, transform),
        apply_affine(rigid, points),
    )  # ITK's lead from the fixed grid to the moving one
    assert np.linalg.norm(got[0] - true[0]) < 0.5
    axes = [(ends[1:] - ends[0]).T / 80 for ends in (got, true)]
    assert np.degrees(Rotation.from_matrix(axes[0] @ axes[1].T).magnitude()) < 0.5
    mask, truth = nib.load(found).get_fdata() > 0, volumes["lesion"] > 0.5
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.95
    np.testing.assert_allclose(nib.load(found).affine, nib.load(paths["T1w"]).affine)
    roi = prefix.with_name("sub-1_label-lesion_roi.nii.gz")  # the name that fMRIPrep takes
    assert roi.read_bytes() == found.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in prefix.parent.iterdir()}
    assert len(before) == 7  # with the native mask and its sidecar
    assert normalize(*(paths[key] for key in ("T2w", "T1w", "lesion")), prefix, [T1W]) == [found]
    assert {path: path.stat().st_mtime_ns for path in prefix.parent.iterdir()} == before


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    data = np.random.default_rng(0).random(SHAPE, np.float32)
    return write(tmp_path, {"T2w": data, "T1w": data, "lesion": data > 2})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"spaces": ["MNI"]}, "--space MNI: expected T1w or MNI152NLin2009aSym"),
        ({"t1w": None, "spaces": [T1W]}, "there is no T1w beside it, which --space T1w needs"),
        ({"t1w": Path("sub-2_T1w.nii.gz")}, "sub-2_T1w.nii.gz: is of sub-2, but its T2w of sub-1"),
        ({"t1w": Path("sub-1_ses-2_T1w.nii.gz")}, "is of ses-2, but its T2w of no ses"),
        ({"mask": Path("sub-1_desc-lesion_mask.nii.gz")}, "no mask of this bundle; segment sub-1_T2w.nii.gz first"),
    ],
    ids=["space", "no T1w", "another subject", "another session", "no mask"],
)
def test_what_cannot_be_normalized_is_told_in_a_line_before_anything_is_written(
    pair: dict[str, Path], given: dict, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_ants", lambda: ants)
    folder = pair["lesion"].parent
    arguments = {"scan": pair["T2w"], "t1w": pair["T1w"], "mask": pair["lesion"], "prefix": folder / "sub-1"}
    with pytest.raises(InputError, match=line) as error:
        normalize(**{**arguments, "spaces": [TEMPLATE], **given})
    assert "\n" not in str(error.value)
    assert len([*folder.iterdir()]) == 2


def test_a_scan_without_a_t1w_comes_to_mni_all_the_same(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is told that it cannot come to the T1w's space."""
    monkeypatch.setattr(spaces, "_ants", lambda: SimpleNamespace(__version__="0"))
    monkeypatch.setattr(spaces, "_to_template", lambda *_: ([b"mask", b"", b"", b""], {"Fit": 0.9}))
    with pytest.raises(InputError, match="there is no T1w beside it, which --space T1w needs"):
        normalize(pair["T2w"], None, pair["lesion"], pair["lesion"].parent / "sub-1", [T1W, TEMPLATE])
    assert in_space(pair["lesion"], TEMPLATE).read_bytes() == b"mask"
    assert not in_space(pair["lesion"], T1W).exists()


@pytest.mark.parametrize("code", [None, "import nothing_of_this_name"], ids=["none", "one that lacks something"])
def test_a_missing_library_is_asked_for_by_the_command_that_installs_it(
    pair: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str | None
) -> None:
    monkeypatch.setitem(sys.modules, "ants", None)
    if code:
        (tmp_path / "ants.py").write_text(code)
        monkeypatch.delitem(sys.modules, "ants")
        monkeypatch.syspath_prepend(tmp_path)
    missing = "nothing_of_this_name" if code else "ants"
    with pytest.raises(InputError, match=rf"--space needs ANTsPy \(.*{missing}.*\): pip install antspyx==0.6.3$"):
        normalize(pair["T2w"], None, pair["lesion"], pair["lesion"].parent / "sub-1", [TEMPLATE])


def test_a_scan_without_known_sides_or_right_angles_is_refused(
    pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_ants", lambda: ants)
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.2
    for affine, code, line in (
        (AFFINE, 0, "does not say where left and right are"),
        (sheared, 1, "not at right angles"),
    ):
        image = nib.load(pair["T2w"])
        image = nib.Nifti1Image(np.asarray(image.dataobj), None if code == 0 else affine)
        nib.save(image, pair["T2w"])
        with pytest.raises(InputError, match=line):
            normalize(pair["T2w"], None, pair["lesion"], pair["lesion"].parent / "sub-1", [TEMPLATE])


def test_the_number_of_a_fit_is_that_of_its_formula_whatever_the_contrast() -> None:
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 4, (20, 20, 20)).astype(np.float32)
    where = np.ones(reference.shape, bool)
    values = np.array([5.0, 1.0, 9.0, 2.0])[reference.astype(int)]  # no line, yet wholly explained
    assert correlation_ratio(values, reference, where) == pytest.approx(1)
    noise = rng.normal(0, 3, reference.shape)
    scan = values + noise
    between = sum((reference == k).mean() * (scan[reference == k].mean() - scan.mean()) ** 2 for k in range(4))
    assert correlation_ratio(scan, reference, where) == pytest.approx((between / scan.var()) ** 0.5, rel=1e-6)
    assert correlation_ratio(noise, reference, where) < 0.1


def test_edges_fit_in_place_only_and_the_number_is_that_of_waves_counted_by_hand() -> None:
    """Of waves of 8 voxels along x, edges weigh 2/3, 1/2, 0, 1/2, squared in place; 2 voxels along x they meet others.

    So the mean of squares is 17/72 in place and 9/72 there; along y and z it stays.
    """
    x = np.indices((40, 12, 12))[0].astype(np.float32)
    inner = np.zeros(x.shape, bool)
    inner[8:32, 3:-3, 3:-3] = True
    waves = np.sin(2 * np.pi * x / 8)
    expected = 1 - (4 * 17 + 2 * 9) / (6 * 17)
    assert edge_fit(waves, waves, inner) == pytest.approx(expected, abs=1e-4)
    assert edge_fit(5 - 300 * waves, waves, inner) == pytest.approx(expected, abs=1e-4)
    first, second = (ndimage.gaussian_filter(np.random.default_rng(i).random((40, 40, 40)), 1) for i in (0, 1))
    inner = np.pad(np.ones((32, 32, 32), bool), 4)
    assert edge_fit(-first, first, inner) > 0.4
    assert abs(edge_fit(second, first, inner)) < 0.03
    assert edge_fit(0 * first, first, inner) == 0


def test_a_poor_fit_to_the_t1w_is_one_to_the_template(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_ants", lambda: SimpleNamespace(__version__="0"))
    monkeypatch.setattr(spaces, "_to_template", lambda *_: ([b"", b"", b"", b""], {"PoorFit": False}))
    for poor in (True, False):
        monkeypatch.setattr(spaces, "_to_t1w", lambda *_, poor=poor: ([b"", b"", b"", b""], {"PoorFit": poor}))
        found = normalize(pair["T2w"], pair["T1w"], pair["lesion"], pair["lesion"].parent / "sub-1", [TEMPLATE])
        assert [json.loads(sidecar_of(mask).read_text())["PoorFit"] for mask in found] == [poor, poor]
        found[0].unlink()  # so that both are made again
        found[1].unlink()


@needs_ants
@pytest.mark.skipif(not HEADS.is_dir(), reason="the heads of single people are not in this checkout")
@pytest.mark.slow  # two registrations and two simulations
def test_the_t1w_of_another_head_is_flagged_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(spaces.LIMITS, T1W, 0)  # none is refused, as its fit is 0.28
    ranges, shown = RANGES["patients"] | RANGES["easy"] | STILL, []
    for i in (3, 4):
        setting = [load_head(str(HEADS / f"head{i:02}_dseg.nii.gz"), VOXEL)], [], SHAPE, VOXEL
        t2w, lesion = simulate_scan(*setting, np.random.default_rng(i), ranges)
        t1w, _ = simulate_scan(*setting, np.random.default_rng(i), ranges | RANGES["T1w"], scanner=None)
        shown.append({"T2w": t2w, "T1w": t1w, "lesion": lesion.astype(np.float32)})
    for name, t1w, poor in (("own", shown[0]["T1w"], False), ("other", shown[1]["T1w"], True)):
        paths = write(tmp_path / name, shown[0] | {"T1w": t1w})
        (found,) = normalize(*(paths[key] for key in ("T2w", "T1w", "lesion")), paths["lesion"].parent / "sub-1", [T1W])
        about = json.loads(sidecar_of(found).read_text())
        assert about["PoorFit"] is poor
        assert (about["EdgeFit"] < about["EdgeFitLimit"]) is poor
        line = f"{paths['T1w']}: its edges fit those of sub-1_T2w.nii.gz by "
        assert (line in caplog.text) is poor


def test_a_t1w_that_fits_in_no_way_is_refused(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(1).random(SHAPE, np.float32)
    fake = SimpleNamespace(apply_transforms=lambda *_: SimpleNamespace(numpy=lambda: noise))
    for name, value in (("_ants", lambda: fake), ("_linear", lambda *_: ["found.mat"]), ("_image", lambda *_: None)):
        monkeypatch.setattr(spaces, name, value)
    line = r"_T1w.nii.gz: its fit to sub-1_T2w.nii.gz is 0.0\d, below 0.3; is it of another subject, or .*move it away"
    with pytest.raises(InputError, match=line):
        normalize(pair["T2w"], pair["T1w"], pair["lesion"], pair["lesion"].parent / "sub-1", [T1W])
    assert len([*pair["lesion"].parent.iterdir()]) == 2


def test_names_are_those_of_bids() -> None:
    mask = Path("sub-1/anat/sub-1_run-2_desc-lesion_mask.nii.gz")
    assert in_space(mask, T1W) == Path("sub-1/anat/sub-1_run-2_space-T1w_desc-lesion_mask.nii.gz")
