"""Scans are found where a user says, and every bad one is named, with what is wrong, in one line each."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.scans import InputError, check_scans, find_scans, read_volume

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path: Path, data: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.arange(24 * 30 * 20, dtype=np.float32).reshape(24, 30, 20) if data is None else data
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def lesion() -> np.ndarray:
    mask = np.zeros((24, 30, 20), np.uint8)
    mask[5:9, 5:9, 5:9] = 1
    return mask


@pytest.fixture
def scan(tmp_path: Path) -> dict[str, str]:
    return {
        "image": str(write(tmp_path / "sub-1_T2w.nii.gz")),
        "label": str(write(tmp_path / "sub-1_mask.nii.gz", lesion())),
    }


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
    assert found(str(tmp_path)) == ["t2.nii.gz"]


def test_two_scans_that_would_give_one_mask_are_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "b.nii"):
        write(tmp_path / name)
    with pytest.raises(InputError, match=r"/a.nii: a.nii.gz beside it would give a mask of the same name$"):
        find_scans(str(tmp_path))


def test_a_good_scan_passes_with_and_without_a_label(scan: dict) -> None:
    check_scans([scan, {"image": scan["image"]}], empty_label_ok=False)


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
        ("label", lambda p: write(p, lesion(), np.diag([2, 2, 2, 1])), r"its affine moves it 19.0 mm away"),
        ("label", lambda p: write(p, lesion(), np.diag([-2, 2, 3, 1])), r"its affine moves it 92.0 mm away"),
        ("label", lambda p: write(p, lesion(), moved(2.0)), r"its affine moves it 2.0 mm away"),  # by one voxel
        ("label", lambda p: write(p, lesion(), moved(0.3)), r"its affine moves it 0.3 mm away"),
        ("label", lambda p: write(p, 0 * lesion()), "empty lesion mask in the training set"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(scan: dict, key: str, break_it: Callable, message: str) -> None:
    break_it(Path(scan[key]))
    with pytest.raises(InputError, match=f"^{scan[key]}: {message}") as error:
        check_scans([scan], empty_label_ok=False)
    assert len(str(error.value).splitlines()) == 1


def test_all_problems_are_reported_at_once(tmp_path: Path, scan: dict) -> None:
    missing = [{"image": str(tmp_path / f"{i}.nii.gz")} for i in range(3)]
    with pytest.raises(InputError) as error:
        check_scans([missing[0], scan, *missing[1:]])
    assert str(error.value).splitlines() == [f"{s['image']}: no such file" for s in missing]


def test_different_problems_of_different_scans_are_a_line_each_in_order(tmp_path: Path, scan: dict) -> None:
    constant = write(tmp_path / "constant.nii.gz", np.zeros((24, 30, 20)))
    other = write(tmp_path / "other_mask.nii.gz", lesion()[:, :-1])
    gone, short = tmp_path / "gone.nii.gz", write(tmp_path / "short.nii.gz")
    cut(short)
    scans = [{"image": str(p)} for p in (constant, gone, short)] + [{"image": scan["image"], "label": str(other)}]
    with pytest.raises(InputError, match="every voxel is 0; is this the right file") as error:
        check_scans(scans)
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(p) for p in (constant, gone, short, other)]


def test_a_volume_is_read_with_its_scale_factors(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scaled.nii.gz")
    raw = nib.load(tmp_path / "scaled.nii.gz").dataobj.get_unscaled()
    _, data = read_volume(tmp_path / "scaled.nii.gz")
    assert np.array_equal(data, raw * 0.5 + 10)


def test_an_input_that_is_a_dangling_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub-1_T2w.nii.gz").symlink_to(".git/annex/objects/gone")
    for input in (tmp_path, tmp_path / "sub-1_T2w.nii.gz", tmp_path / "*.nii.gz"):
        with pytest.raises(InputError, match=f"^{tmp_path}/sub-1_T2w.nii.gz: a git-annex link"):
            find_scans(str(input))


def test_an_empty_mask_is_fine_outside_training(scan: dict) -> None:
    write(Path(scan["label"]), 0 * lesion())
    check_scans([scan])


def test_a_mask_with_a_scale_slope_is_not_empty(scan: dict) -> None:
    write(Path(scan["label"]), lesion() * np.float32(0.017))
    check_scans([scan], empty_label_ok=False)


def test_rounding_in_the_affine_is_no_disagreement(scan: dict) -> None:
    write(Path(scan["label"]), lesion(), AFFINE + 1e-4)
    check_scans([scan])


@pytest.mark.parametrize("input", [None, ""])
def test_no_input_says_what_to_give(input: str | None) -> None:
    with pytest.raises(InputError, match="--input is missing: give a NIfTI file, a folder or a glob"):
        find_scans(input)


@pytest.mark.parametrize("input", ["", "missing.nii.gz", "nowhere", "*.nii"])
def test_an_input_without_scans_is_refused(tmp_path: Path, input: str) -> None:
    (tmp_path / "notes.txt").write_text("")
    path = str(tmp_path / input)
    with pytest.raises(InputError, match=r"no NIfTI file \(\*.nii, \*.nii.gz\) there") as error:
        find_scans(path)
    assert str(error.value).startswith(f"--input {path}: ")
