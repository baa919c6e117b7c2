"""Every scan is read before anything is trained; all that is wrong is said at once, a line each."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, lesion, write

from scripts.common.errors import InputError
from scripts.data.check_scans import check_scans, refuse_bad_scans
from scripts.data.volumes import read_volume


@pytest.fixture
def scan(tmp_path: Path) -> dict[str, str]:
    return {
        "image": str(write(tmp_path / "sub-1_T2w.nii.gz")),
        "label": str(write(tmp_path / "sub-1_mask.nii.gz", lesion())),
    }


def refuse(scans: list[dict], training: bool = False, **grid: tuple) -> None:
    refuse_bad_scans(scans, check_scans(scans, **grid), lesion_needed=scans if training else ())


def test_a_good_scan_passes_with_and_without_a_label(scan: dict) -> None:
    refuse([scan, {"image": scan["image"]}], training=True)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to(".git/annex/objects/gone")


def unlock(path: Path) -> None:
    path.write_text("/annex/objects/MD5E-s1--0.nii.gz\n")


def poison(value: float) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        data = np.ones((24, 30, 20), np.float32)
        data[1, 2, 3], data[0, 0, 0] = value, 0
        write(path, data)

    return act


def moved(millimetres: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += millimetres
    return affine


def rgb(path: Path) -> None:
    write(path, np.zeros((24, 30, 20), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


@pytest.mark.parametrize(
    ("key", "break_it", "message"),
    [
        ("image", Path.unlink, "no such file"),
        ("label", Path.unlink, "no such file"),
        ("image", dangle, "a git-annex link, its content is not here; `datalad get"),
        ("image", unlock, "a git-annex link, its content is not here; `datalad get"),
        ("image", cut, "not a readable NIfTI image"),
        ("label", cut, "not a readable NIfTI image"),
        ("image", flip_bytes, "not a readable NIfTI image"),
        ("image", lambda p: p.write_bytes(b""), "not a readable NIfTI image"),
        ("image", lambda p: p.write_text("hello"), "not a readable NIfTI image"),
        ("image", rgb, "not a readable NIfTI image"),
        (
            "image",
            lambda p: write(p, np.random.rand(24, 30, 20, 2)),
            r"expected a 3D volume, got shape \(24, 30, 20, 2\)",
        ),
        ("image", poison(np.nan), "1 voxels are NaN or infinite"),
        ("image", poison(np.inf), "1 voxels are NaN or infinite"),
        ("label", poison(np.nan), "1 voxels are NaN or infinite"),
        ("image", lambda p: write(p, np.full((24, 30, 20), 7.0)), "every voxel is 7"),
        ("label", lambda p: write(p, lesion()[:-1]), r"shape \(23, 30, 20\), but its image has \(24, 30, 20\)"),
        (
            "label",
            lambda p: write(p, lesion(), np.diag([2, 2, 2, 1])),
            r"spacing \[2.0, 2.0, 2.0\] mm",
        ),
        ("label", lambda p: write(p, lesion(), np.diag([-2, 2, 3, 1])), "orientation LAS, but its image has RAS"),
        ("label", lambda p: write(p, lesion(), moved(2.0)), r"its affine moves it 2.0 mm away"),  # by one voxel
        ("label", lambda p: write(p, lesion(), moved(0.3)), r"its affine moves it 0.3 mm away"),
        ("label", lambda p: write(p, 0 * lesion()), "empty lesion mask in the training set"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(scan: dict, key: str, break_it: Callable, message: str) -> None:
    break_it(Path(scan[key]))
    with pytest.raises(InputError, match=f"^{scan[key]}: {message}") as error:
        refuse([scan], training=True)
    assert len(str(error.value).splitlines()) == 1


GRID = {"spacing": (2.0, 2.0, 3.0), "spatial_size": (24, 30, 20)}


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([2.0, 0.0, 3.0, 1.0]), r"its affine is not one of a scan \(spacing 2x0x3 mm\)"),
        (np.diag([2.0, 2.0, 500.0, 1.0]), r"its affine is not one of a scan \(spacing 2x2x500 mm\)"),
        (np.array([[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1.0]]), "its affine is not one of a scan"),
    ],
    ids=["zero", "wild", "singular"],
)
def test_an_affine_of_no_scan_is_an_error(tmp_path: Path, affine: np.ndarray, message: str) -> None:
    image = nib.Nifti1Image(np.arange(24.0).reshape(2, 3, 4), None)
    image.header.set_sform(affine, code=1)
    nib.save(image, tmp_path / "sub-1_T2w.nii.gz")
    with pytest.raises(InputError, match=f"^{tmp_path}/sub-1_T2w.nii.gz: {message}"):
        refuse([{"image": str(tmp_path / "sub-1_T2w.nii.gz")}])


def warned(scans: list[dict], **grid: tuple) -> list[str]:
    return [line for report in check_scans(scans, **grid) for line in report["warnings"]]


def test_thick_slices_are_a_warning(scan: dict) -> None:
    write(Path(scan["image"]), affine=np.diag([1, 1, 20, 1]))
    assert warned([{"image": scan["image"]}]) == [f"{scan['image']}: unusual spacing, 1x1x20 mm"]


@pytest.mark.parametrize(
    ("values", "warning"), [((1, 2), "2 different values above 0, all taken as"), ((-1, 1), "values below 0, taken as")]
)
def test_a_mask_that_is_not_0_and_1_is_a_warning(scan: dict, values: tuple, warning: str) -> None:
    mask = lesion().astype(np.int16)
    mask[5, 5, 5], mask[6, 6, 6] = values
    write(Path(scan["label"]), mask)
    assert [line.startswith(f"{scan['label']}: {warning}") for line in warned([scan])] == [True]


def test_a_scan_given_as_mask_is_an_error(scan: dict) -> None:
    write(Path(scan["label"]))
    with pytest.raises(InputError, match=f"^{scan['label']}: 100% of the volume is above 0; is this a lesion mask?"):
        refuse([scan])


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "LPI"])
def test_a_lesion_beyond_the_grid_is_found_in_any_orientation(scan: dict, orientation: str) -> None:
    mask = np.zeros((24, 30, 20), np.uint8)
    mask[0:4, 10, 10] = 1  # at the left edge
    for path, data in ((scan["image"], nib.load(scan["image"]).get_fdata()), (scan["label"], mask)):
        image = nib.Nifti1Image(data, AFFINE)
        turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation))
        nib.save(image.as_reoriented(turn), path)
    assert warned([scan], **GRID) == []
    narrow = {**GRID, "spatial_size": (20, 30, 20)}  # loses 2 voxels of 2 mm on either side
    assert warned([scan], **narrow) == [f"{scan['label']}: 50% of the lesion lies outside the recipe's grid"]
    with pytest.raises(InputError, match="100% of the lesion lies outside the recipe's grid"):
        refuse([scan], **{**GRID, "spatial_size": (16, 30, 20)})


def test_a_scan_that_is_there_twice_is_an_error(tmp_path: Path, scan: dict) -> None:
    copy = {key: str(tmp_path / f"copy_{key}.nii.gz") for key in scan}
    for key, path in scan.items():
        Path(copy[key]).write_bytes(Path(path).read_bytes())
    with pytest.raises(InputError, match=f"^{copy['image']}: the same content as {scan['image']}$"):
        refuse([scan, copy])
    assert warned([scan, copy]) == [f"{copy['label']}: the same content as {scan['label']}"]
    refuse([scan, scan])  # one scan, named twice by its caller


def test_reports_are_kept_until_a_file_or_the_grid_changes(
    tmp_path: Path, scan: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, cache = [], tmp_path / "checked.json"
    monkeypatch.setattr("scripts.data.check_scans.read_volume", lambda path: reads.append(path) or read_volume(path))
    first = check_scans([scan], cache=cache)
    assert len(reads) == 2
    assert check_scans([scan], cache=cache) == first
    assert len(reads) == 2
    write(Path(scan["label"]), 0 * lesion())
    assert check_scans([scan], cache=cache)[0]["empty_label"]
    assert len(reads) == 4
    check_scans([scan], **GRID, cache=cache)
    assert len(reads) == 6
    cache.write_text("{ not JSON")
    check_scans([scan], cache=cache)
    assert len(reads) == 8


def test_a_folder_that_cannot_be_written_keeps_no_reports_and_is_no_error(scan: dict) -> None:
    assert check_scans([scan], cache=Path("/proc/checked.json"))[0]["errors"] == []


def test_all_problems_are_reported_at_once(tmp_path: Path, scan: dict) -> None:
    missing = [{"image": str(tmp_path / f"{i}.nii.gz")} for i in range(3)]
    with pytest.raises(InputError) as error:
        refuse([missing[0], scan, *missing[1:]])
    assert str(error.value).splitlines() == [f"{s['image']}: no such file" for s in missing]


def test_different_problems_of_different_scans_are_a_line_each_in_order(tmp_path: Path, scan: dict) -> None:
    constant = write(tmp_path / "constant.nii.gz", np.zeros((24, 30, 20)))
    other = write(tmp_path / "other_mask.nii.gz", lesion()[:, :-1])
    gone, short = tmp_path / "gone.nii.gz", write(tmp_path / "short.nii.gz")
    cut(short)
    scans = [{"image": str(p)} for p in (constant, gone, short)] + [{"image": scan["image"], "label": str(other)}]
    with pytest.raises(InputError, match="every voxel is 0; is this the right file") as error:
        refuse(scans)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(p) for p in (constant, gone, short, other)]


def test_an_empty_mask_is_fine_outside_training(scan: dict) -> None:
    write(Path(scan["label"]), 0 * lesion())
    refuse([scan])


def test_a_mask_with_a_scale_slope_is_not_empty(scan: dict) -> None:
    write(Path(scan["label"]), lesion() * np.float32(0.017))
    refuse([scan], training=True)


def test_rounding_in_the_affine_is_no_disagreement(scan: dict) -> None:
    write(Path(scan["label"]), lesion(), AFFINE + 1e-4)
    refuse([scan])
