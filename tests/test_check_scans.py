"""Every scan is read before anything is trained; all that is wrong is said at once, a line each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import AFFINE, lesion, write

from scripts.check_scans import check_scans, refuse_bad_scans
from scripts.scans import InputError


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
