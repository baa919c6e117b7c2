"""The simulated cohort is a BIDS tree like ARC's: the same for the same seed, with the traps of real data."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.check_scans import check_scans, refuse_bad_scans
from scripts.simulation.cohort import simulate_cohort
from scripts.simulation.lesions import ARC_VOLUME_QUANTILES

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"


@pytest.fixture(scope="module")
def scans(cohort_dir: Path) -> list[dict]:
    entries = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    return [{**s, "image": str(cohort_dir / s["image"]), "label": str(cohort_dir / s["label"])} for s in entries]


def test_every_scan_is_readable_and_every_mask_lies_on_its_scan(scans: list[dict]) -> None:
    refuse_bad_scans(scans, check_scans(scans), lesion_needed=scans)


def test_it_says_that_it_is_simulated(cohort_dir: Path) -> None:
    assert json.loads((cohort_dir / "datalist.json").read_text())["simulated"] is True
    assert "not patients" in json.loads((cohort_dir / "dataset_description.json").read_text())["Name"]


def test_traps_of_real_data_are_in_it(scans: list[dict]) -> None:
    images = [nib.load(s["image"]) for s in scans]
    assert {nib.aff2axcodes(image.affine) for image in images} == {("R", "A", "S"), ("P", "S", "R")}
    assert sum(np.ptp(image.header.get_zooms()) > 1 for image in images) == 4
    brightest = [nib.load(s["label"]).get_fdata().max() for s in scans]
    assert sorted(brightest) == pytest.approx([1 / 60] * 2 + [1] * 22)


def test_lesion_volumes_follow_arcs_distribution(scans: list[dict]) -> None:
    volumes = [s["lesion_volume"] for s in scans]
    assert min(volumes) < ARC_VOLUME_QUANTILES[1]
    assert ARC_VOLUME_QUANTILES[1] < np.median(volumes) < ARC_VOLUME_QUANTILES[3]
    assert ARC_VOLUME_QUANTILES[3] < max(volumes) < 1.15 * ARC_VOLUME_QUANTILES[4]


def test_lesions_are_bright_and_white_matter_is_dark(scans: list[dict]) -> None:
    for scan in scans:
        image, lesion = nib.load(scan["image"]).get_fdata(), nib.load(scan["label"]).get_fdata() > 0
        head = image > 0.15 * np.percentile(image, 99.5)
        assert np.median(image[lesion]) > 1.4 * np.median(image[head & ~lesion])


def test_most_lesions_are_in_the_left_hemisphere(scans: list[dict]) -> None:
    centres = []
    for scan in scans:
        mask = nib.load(scan["label"])
        centres.append(nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0).mean(0))[0])
    assert np.mean(np.array(centres) < 0) > 0.7


@pytest.mark.slow
def test_same_seed_same_voxels_and_another_seed_another_cohort(tmp_path: Path) -> None:
    a, b, c = (
        Path(simulate_cohort(str(tmp_path / name), n_subjects=9, spacing=8.0, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    files = sorted(p.relative_to(a) for p in a.rglob("*.nii.gz"))
    assert len(files) == 18
    for file in files:
        np.testing.assert_array_equal(nib.load(a / file).get_fdata(), nib.load(b / file).get_fdata())
    assert (a / "datalist.json").read_bytes() == (b / "datalist.json").read_bytes()
    volumes = [json.loads((x / "datalist.json").read_text())["training"][0]["lesion_volume"] for x in (a, c)]
    assert volumes[0] != volumes[1]


def test_a_cohort_that_is_there_is_reused(cohort_dir: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in cohort_dir.rglob("*")}
    simulate_cohort(str(cohort_dir), n_subjects=24, spacing=8.0, seed=3)
    assert {p: p.stat().st_mtime_ns for p in cohort_dir.rglob("*")} == before


def test_a_folder_with_something_else_is_left_alone(cohort_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    with pytest.raises(InputError, match="holds something else"):
        simulate_cohort(str(tmp_path), n_subjects=9, spacing=8.0)
    with pytest.raises(InputError, match="'n_subjects': 24"):
        simulate_cohort(str(cohort_dir), n_subjects=9, spacing=8.0)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_changed_generator_makes_a_cohort_of_its_own(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "cohort-{revision}")
    first = simulate_cohort(name, n_subjects=9, spacing=8.0)
    assert simulate_cohort(name, n_subjects=9, spacing=8.0) == first
    monkeypatch.setattr("scripts.simulation.cohort.revision", lambda *names: "0")
    with pytest.raises(InputError, match="other code has simulated this cohort; give another --output_dir or delete"):
        simulate_cohort(first, n_subjects=9, spacing=8.0)
    assert simulate_cohort(name, n_subjects=9, spacing=8.0) == str(tmp_path / "cohort-0") != first


def test_a_cohort_without_its_datalist_is_not_used(cohort_dir: Path, tmp_path: Path) -> None:
    shutil.copy(cohort_dir / "dataset_description.json", tmp_path)
    with pytest.raises(InputError, match=r"its datalist.json is gone; delete the folder to simulate it again$"):
        simulate_cohort(str(tmp_path), n_subjects=24, spacing=8.0, seed=3)


def test_an_interrupted_simulation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.simulation.cohort._write_description", stop)
    with pytest.raises(KeyboardInterrupt):
        simulate_cohort(str(tmp_path / "cohort"), n_subjects=9, spacing=8.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"n_subjects": 8}, "n_subjects 8: at least 9"),
        ({"spacing": 0}, "spacing 0: expected 1 to 8 mm"),
        ({"lesions": "/nowhere"}, "--lesions /nowhere: no NIfTI file"),
        ({"anatomy": "/nowhere/head.nii.gz"}, "/nowhere/head.nii.gz: no such file"),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_made(tmp_path: Path, arguments: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        simulate_cohort(str(tmp_path / "cohort"), **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"real masks and head are not here: {REAL}")
def test_real_masks_in_a_real_head_keep_their_volumes(tmp_path: Path) -> None:
    root = simulate_cohort(
        str(tmp_path / "real"),
        n_subjects=9,
        spacing=6.0,
        anatomy=str(REAL / "anatomy_colin27_t1.nii.gz"),
        lesions=str(REAL / "lesions"),
    )
    simulated = sorted(s["lesion_volume"] for s in json.loads((Path(root) / "datalist.json").read_text())["training"])
    real = [np.count_nonzero(nib.load(p).dataobj) for p in (REAL / "lesions").glob("*.nii.gz")]  # 1 mm3 voxels
    assert min(real) * 0.5 < simulated[0] < simulated[-1] < max(real) * 1.5


def test_other_contrasts_are_of_the_same_heads_and_leave_the_t2w_as_it_was(contrast_dir: Path, tmp_path: Path) -> None:
    alone = Path(simulate_cohort(str(tmp_path / "alone"), n_subjects=9, spacing=8.0, seed=3))
    for file in alone.rglob("*.nii.gz"):
        ours = nib.load(contrast_dir / file.relative_to(alone))
        np.testing.assert_array_equal(ours.get_fdata(), nib.load(file).get_fdata())
    for scan in json.loads((contrast_dir / "datalist.json").read_text())["training"]:
        assert scan["contrasts"]["T2w"] == scan["image"]
        images = [nib.load(contrast_dir / path) for path in scan["contrasts"].values()]
        label = nib.load(contrast_dir / scan["label"])
        assert all(np.allclose(image.affine, label.affine) and image.shape == label.shape for image in images)
    with pytest.raises(InputError, match="contrasts T1w, DWI: expected T1w, FLAIR or both, besides T2w"):
        simulate_cohort(str(tmp_path / "more"), contrasts=["T1w", "DWI"])


@pytest.mark.slow
def test_more_variation_spreads_contrast_noise_and_voxel_sizes(cohort_dir: Path, tmp_path: Path) -> None:
    def contrast(folder: Path) -> tuple[list[float], set]:
        ratios, zooms = [], set()
        for scan in json.loads((folder / "datalist.json").read_text())["training"]:
            image, lesion = nib.load(folder / scan["image"]), nib.load(folder / scan["label"]).get_fdata() > 0
            assert lesion.any()
            data = image.get_fdata()
            ratios.append(np.median(data[lesion]) / np.median(data[(data > 0.15 * data.max()) & ~lesion]))
            zooms.add(tuple(sorted(np.round(image.header.get_zooms(), 3))))
        return ratios, zooms

    varied = Path(simulate_cohort(str(tmp_path / "varied"), n_subjects=24, spacing=8.0, seed=3, variation=4.0))
    (usual, few), (spread, many) = contrast(cohort_dir), contrast(varied)
    assert np.std(spread) / np.mean(spread) > 1.5 * np.std(usual) / np.mean(usual)
    assert (len(few), len(many)) == (2, 24)
    with pytest.raises(InputError, match="variation 9: expected 1 to 4"):
        simulate_cohort(str(tmp_path / "more"), variation=9)
