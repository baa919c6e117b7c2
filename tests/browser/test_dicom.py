"""DICOM on the page in a real browser: series from a folder, which are offered, and what of a person stays in them."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser.chromium import Chromium
from browser.dicom import NAME, write_series
from browser.test_site import DONE, ITEM, segment
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from scripts.data.bids import scans_in_bids

SHOWN = "!document.querySelector('#series').hidden && !!document.querySelector('#series [type=checkbox]')"
PICKS = """[...document.querySelectorAll('#series .pick')].map((row) => {
    const box = row.querySelector('input')
    return [row.innerText.split('\\n')[0].trim(), box.checked, !box.disabled]
})"""


@pytest.fixture(scope="module")
def sagittal(head: nib.Nifti1Image) -> nib.Nifti1Image:
    """The head as a scanner takes it in oblique sagittal slices of 4 mm."""
    axes = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    linear, shape = axes @ np.diag([3, 2.5, 4]), (84, 84, 50)
    middle = nib.affines.apply_affine(head.affine, (np.array(head.shape) - 1) / 2)
    grid = nib.affines.from_matvec(linear, middle - linear @ (np.array(shape) - 1) / 2)
    scan = resample_from_to(head, (shape, grid), order=1)
    return nib.Nifti1Image(np.asarray(scan.dataobj).clip(0).astype(np.uint16), scan.affine)


@pytest.fixture(scope="module")
def study(sagittal: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a PACS exports it: T2w, FLAIR, T1w, a localizer, and files that are no images."""
    folder, data = tmp_path_factory.mktemp("pacs") / "export", np.asarray(sagittal.dataobj)
    write_series(folder / "a" / "1", data[:, :, 20:23], sagittal.affine, 1, "localizer", 5)
    write_series(folder / "a" / "2", data, sagittal.affine, 2, "t1_mprage_sag", 3)
    write_series(folder / "a" / "3", data, sagittal.affine, 3, "t2_flair_sag", 110)
    write_series(folder / "a" / "4", data[:, :, 8:32], sagittal.affine, 4, "pd+t2_tse_sag", 90)
    write_series(folder / "a" / "5", data, sagittal.affine, 5, "t2_tse_sag", 100)
    (folder / "README").write_text("Viewer for Windows")
    return folder


def offered(page: Chromium, *paths: Path) -> list:
    """Drop files or folders; the series that are listed: its line, whether it is picked, whether it can be."""
    page.ask("document.querySelector('#series').hidden = true")
    page.drop(*paths)
    page.wait_for(SHOWN)
    return page.ask(PICKS)


def told(page: Chromium, path: Path) -> str:
    """Drop what has no scan in it; what the page says."""
    page.ask("document.querySelector('#error').textContent = ''")
    page.drop(path)
    line = page.wait_for("document.querySelector('#error').textContent")
    assert page.ask("document.querySelector('#series').hidden")
    return line


@pytest.mark.slow
def test_the_likely_t2w_scan_of_a_folder_comes_first_and_what_is_no_scan_is_not_offered(
    page: Chromium, study: Path
) -> None:
    assert offered(page, study) == [
        ["5 t2_tse_sag", True, True],
        ["4 pd+t2_tse_sag", False, True],
        ["2 t1_mprage_sag", False, True],
        ["3 t2_flair_sag", False, True],
        ["1 localizer", False, False],
    ]
    assert page.text("#series legend") == "Series in export/a"
    assert "84x84x50 voxels of 3x2.5x4 mm, TE 100 ms. Likely the T2w scan." in page.text("#series .pick")
    assert "Not offered: it has 3 slices, as localizers have." in page.text("#series .pick:has([disabled])")
    page.click("#series [type=reset]")
    assert page.ask("document.querySelector('#series').hidden")


@pytest.mark.slow
def test_the_mask_of_a_series_is_that_of_the_same_volume_as_nifti_and_both_are_a_pair_for_training(
    page: Chromium, study: Path, sagittal: nib.Nifti1Image, tmp_path: Path
) -> None:
    nib.save(sagittal, tmp_path / "same.nii.gz")
    segment(page, tmp_path / "same.nii.gz")
    same = nib.load(page.download("#save", "same_desc-lesion_mask.nii.gz"))
    offered(page, study / "a" / "5")
    page.ask("document.querySelector('#series input:not([type])').value = 'sub-07'")
    scan = page.download("#series .buttons [type=button]", "sub-07_acq-5t2tsesag_T2w.nii.gz")
    page.click("#series button:not([type])")
    page.wait_for(f"{DONE} && {ITEM.format(json.dumps('sub-07'))}?.getAttribute('aria-current') == 'true'")
    mask = page.download("#save", "sub-07_acq-5t2tsesag_desc-lesion_mask.nii.gz")
    ours, truth = nib.as_closest_canonical(nib.load(mask)), nib.as_closest_canonical(same)
    assert np.asarray(truth.dataobj).sum() > 100
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(truth.dataobj))
    (tmp_path / "mine" / "corrected").mkdir(parents=True)
    shutil.copy(scan, tmp_path / "mine")
    shutil.copy(mask, tmp_path / "mine" / "corrected")
    (pair,) = scans_in_bids(tmp_path / "mine", "T2w", "corrected")
    assert (pair["image"], pair["label"], pair["subject"]) == (scan.name, f"corrected/{mask.name}", "07")


@pytest.mark.slow
def test_a_saved_series_has_the_scanners_voxels_and_nobodys_name(
    page: Chromium, study: Path, sagittal: nib.Nifti1Image
) -> None:
    assert sum(NAME.encode() in path.read_bytes() for path in study.rglob("*.dcm")) == 177
    offered(page, study / "a" / "5")
    name = page.ask("document.querySelector('#series input:not([type])').value") + "_acq-5t2tsesag_T2w.nii.gz"
    path = page.download("#series .buttons [type=button]", name)
    page.click("#series [type=reset]")
    saved, truth = nib.as_closest_canonical(nib.load(path)), nib.as_closest_canonical(sagittal)
    np.testing.assert_allclose(saved.affine, truth.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(truth.dataobj))
    assert b"ZIEGLER" not in nib.load(path).to_bytes()
    assert NAME not in page.ask("document.body.innerHTML")


@pytest.mark.slow
def test_each_study_of_a_folder_has_its_own_name(page: Chromium, tmp_path: Path, sagittal: nib.Nifti1Image) -> None:
    for number in ("1", "2"):
        write_series(tmp_path / "all" / number, np.asarray(sagittal.dataobj), sagittal.affine, study=f"9{number}")
    assert [pick[1] for pick in offered(page, tmp_path / "all")] == [True, True]
    names = page.ask("[...document.querySelectorAll('#series input:not([type])')].map((one) => one.value)")
    assert len({*names}) == 2
    legends = page.ask("[...document.querySelectorAll('#series legend')].map((one) => one.textContent)")
    assert legends == ["Series in all/1", "Series in all/2"]
    page.click("#series [type=reset]")


@pytest.mark.slow
def test_a_series_with_a_slice_missing_is_not_segmented(
    page: Chromium, tmp_path: Path, study: Path, sagittal: nib.Nifti1Image
) -> None:
    write_series(tmp_path / "gap", np.asarray(sagittal.dataobj), sagittal.affine)
    (tmp_path / "gap" / "0020.dcm").unlink()
    line = told(page, tmp_path / "gap")
    assert line == "gap: 1 t2_tse_tra has slices that are missing or not evenly spaced."


@pytest.mark.slow
def test_a_folder_without_a_scan_is_told_in_a_line(page: Chromium, tmp_path: Path, study: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert told(page, tmp_path / "notes") == "notes: no NIfTI or DICOM file in it."
    (tmp_path / "notes" / "letter.txt").write_text("Dear colleague")
    assert told(page, tmp_path / "notes") == "notes: no NIfTI or DICOM file in it."
    assert told(page, study / "a" / "1") == "1: 1 localizer has 3 slices, as localizers have."
    (tmp_path / "dir").mkdir()
    start = (study / "a" / "5" / "0001.dcm").read_bytes()
    (tmp_path / "dir" / "cut.dcm").write_bytes(start[:700])
    assert told(page, tmp_path / "dir") == "dir: its DICOM files hold no image."
    (tmp_path / "dir" / "cut.dcm").write_bytes(start[:3000])
    assert told(page, tmp_path / "dir") == "dir: dir/cut.dcm is broken or not whole."


@pytest.mark.slow
def test_a_folder_of_nifti_files_is_segmented_as_the_files_are(page: Chromium, tmp_path: Path, scans: Path) -> None:
    (tmp_path / "bids" / "sub-1").mkdir(parents=True)
    (tmp_path / "bids" / "sub-1" / "sub-1_T2w.nii").write_bytes((scans / "bigendian.nii").read_bytes())
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    segment(page, tmp_path / "bids")
    page.wait_for(f"{DONE} && !!{ITEM.format(json.dumps('sub-1_T2w.nii'))}?.querySelector('.done')")
    assert page.text("#error") == ""


@pytest.mark.slow
def test_converting_asks_no_other_host(page: Chromium, address: str, study: Path) -> None:
    offered(page, study / "a" / "5")
    page.click("#series [type=reset]")
    assert any(url.endswith("dcm2niix.jpeg.wasm") for url in page.requests)
    assert [url for url in page.requests if not url.startswith((address, "data:", f"blob:{address}"))] == []
    assert [line for line in page.problems if "Content Security Policy" in line] == []
