"""Every scan is read before anything is trained; all that is wrong is said at once, a line each."""

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, lesion, write
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.data.check_scans import check_scans, refuse_bad_scans
from scripts.data.datalist import prepare_datalist
from scripts.data.reader import read_volume
from scripts.data.volumes import lesion_of


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


def lie_about_the_content(path: Path) -> None:
    """Other voxels under the checksum of the right ones, stored, so that inflating sees nothing."""
    raw = gzip.decompress(path.read_bytes())
    stored = bytearray(gzip.compress(raw, 0))
    stored[len(stored) // 2] ^= 0xFF
    path.write_bytes(stored)
    assert nib.load(path).get_fdata().shape == (24, 30, 20)  # nibabel says nothing


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def claim(*shape: int) -> Callable[[Path], None]:
    """A header that claims another shape."""

    def act(path: Path) -> None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[42:48] = np.array(shape, "<i2").tobytes()
        path.write_bytes(gzip.compress(bytes(raw)))

    return act


def poison(value: float) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        data = np.ones((24, 30, 20))
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
        ("image", lie_about_the_content, r"not a readable NIfTI image \(CRC check failed"),
        ("label", lie_about_the_content, r"not a readable NIfTI image \(CRC check failed"),
        ("image", circle, r"no such file \(sub-1_T2w.nii.gz, where this link leads\)"),
        ("image", claim(30_000, 30_000, 30_000), r"its header says shape \(30000, 30000, 30000\), 100,583 GiB, more"),
        ("image", lambda p: write(p, np.ones((24, 30, 20), np.complex64)), "complex voxels; give the magnitude image"),
        ("image", poison(1e302), r"values from 0 to 1e\+302, more than float32 can hold"),
        ("image", lambda p: p.write_bytes(b""), "not a readable NIfTI image"),
        ("image", lambda p: p.write_text("hello"), "not a readable NIfTI image"),
        ("image", rgb, "its voxels are colours"),
        (
            "image",
            lambda p: write(p, np.random.rand(24, 30, 20, 2)),
            r"expected a 3D volume, got shape \(24, 30, 20, 2\)",
        ),
        ("image", poison(np.inf), "1 voxels are NaN or infinite"),
        ("label", poison(np.nan), "1 voxels are NaN or infinite"),
        ("image", lambda p: write(p, np.full((24, 30, 20), 7.0)), "every voxel is 7"),
        ("label", lambda p: write(p, lesion()[:-1]), r"shape \(23, 30, 20\), but its image has \(24, 30, 20\)"),
        ("label", lambda p: write(p, lesion(), np.diag([2, 2, 2, 1])), r"spacing \[2.0, 2.0, 2.0\] mm"),
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


@pytest.mark.parametrize("air", [0.0, None])
def test_standardized_intensities_are_a_warning(scan: dict, air: float | None) -> None:
    data = np.random.default_rng(0).normal(0, 1, (24, 30, 20))
    if air is not None:
        data[:, :8] = air
    write(Path(scan["image"]), data.astype(np.float32))
    (line,) = warned([{"image": scan["image"]}])
    assert line.startswith(f"{scan['image']}: values are standardized, or no MRI's (a fiftieth is below -")


def test_values_below_0_that_resampling_left_in_the_air_are_no_warning(scan: dict) -> None:
    data = 500 * np.random.default_rng(0).random((24, 30, 20))
    data[:, :8] = np.random.default_rng(1).normal(0, 10, (24, 8, 20))
    write(Path(scan["image"]), data.astype(np.float32))
    assert warned([{"image": scan["image"]}]) == []


def test_a_range_beyond_float32_is_an_error(scan: dict) -> None:
    data = np.linspace(-3e38, 3e38, 24 * 30 * 20).astype(np.float32).reshape(24, 30, 20)
    with pytest.raises(InputError, match=r"T2w.nii.gz: values from -3e\+38 to 3e\+38, more than float32 can hold"):
        refuse([{"image": str(write(Path(scan["image"]), data))}])


def test_a_header_without_form_codes_is_a_warning(scan: dict) -> None:
    for path in scan.values():
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(), None), path)
    assert warned([scan]) == [
        f"{scan['image']}: its header does not say where left and right are (both form codes are 0)"
    ]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), r"cannot be read \(Permission denied\)"),
        (MemoryError(), "does not fit into the memory that is free"),
    ],
)
def test_a_scan_that_the_system_refuses_to_read_is_its_own_error(
    tmp_path: Path, scan: dict, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    refused, load, cache = str(write(tmp_path / "refused.nii.gz")), Path.read_bytes, tmp_path / "checked.json"

    def fail(path: Path) -> bytes:
        if path.name == "refused.nii.gz":
            raise error
        return load(path)

    scans = [{"image": refused}, {"image": scan["image"]}]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        first, second = check_scans(scans, cache=cache)
    assert re.fullmatch(f"{refused}: {message}", "".join(first["errors"]))
    assert second["errors"] == []
    assert check_scans(scans, cache=cache)[0]["errors"] == []  # the file is as it was, the system is not


def test_memory_that_ends_while_a_mask_is_checked_is_that_scans_error(
    tmp_path: Path, scan: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "unique", fail)
    other = {"image": str(write(tmp_path / "other.nii.gz", np.random.rand(24, 30, 20)))}
    first, second = check_scans([scan, other])
    assert first["errors"] == [f"{scan['image']}: does not fit into the memory that is free"]
    assert second["errors"] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may read")
def test_a_file_without_read_permission_is_its_own_error(scan: dict) -> None:
    Path(scan["image"]).chmod(0)
    assert check_scans([scan])[0]["errors"] == [f"{scan['image']}: cannot be read (Permission denied)"]


@pytest.mark.parametrize(
    ("values", "warning"), [((1, 2), "2 different values above 0, all taken as"), ((-1, 1), "values below 0, taken as")]
)
def test_a_mask_that_is_not_0_and_1_is_a_warning(scan: dict, values: tuple, warning: str) -> None:
    mask = lesion().astype(np.int16)
    mask[5, 5, 5], mask[6, 6, 6] = values
    write(Path(scan["label"]), mask)
    assert [line.startswith(f"{scan['label']}: {warning}") for line in warned([scan])] == [True]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda mask: mask * np.float32(1 / 60), 64),
        (lambda mask: mask * np.float32(255), 64),
        (lambda mask: mask * np.arange(1, 31, dtype=np.int16).reshape(30, 1), 64),  # thirty regions
        (lambda mask: ndimage.shift(mask.astype(np.float32), (0.3, 0.4, 0), order=1), None),
        (lambda mask: ndimage.gaussian_filter(mask.astype(np.float32), 1.5), None),
        (lambda mask: (1000 * ndimage.gaussian_filter(mask.astype(float), 2)).astype(np.int16) / 1000, None),
    ],
    ids=["slope", "bytes", "regions", "moved", "smoothed", "stored with a slope"],
)
def test_an_interpolated_mask_is_refused_and_labels_are_not(
    tmp_path: Path, scan: dict, change: Callable, kept: int | None
) -> None:
    write(Path(scan["label"]), change(lesion()))
    errors = check_scans([scan])[0]["errors"]
    if kept:
        assert np.count_nonzero(lesion_of(read_volume(scan["label"]))) == kept
        assert errors == []
    else:
        (line,) = errors
        half = nib.load(scan["label"]).get_fdata().max() / 2
        assert re.search(
            rf"mask.nii.gz: \d+ different values above 0 .* cut it at half: `fslmaths MASK -thr {half:g} ", line
        )
        (tmp_path / "table.csv").write_text(f"image,label\n{scan['image']},{scan['label']}\n")
        with pytest.raises(InputError) as error:
            prepare_datalist(csv=str(tmp_path / "table.csv"))
        assert str(error.value) == line  # there, too
        assert not (tmp_path / "datalist.json").exists()


def test_a_scan_given_as_mask_is_an_error(scan: dict) -> None:
    write(Path(scan["label"]))
    with pytest.raises(InputError, match=f"^{scan['label']}: 100% of the volume is above 0; is this a lesion mask?"):
        refuse([scan])


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "LPI"])
def test_a_lesion_beyond_the_grid_is_found_in_any_orientation(scan: dict, orientation: str) -> None:
    with_head(scan, slice(0, 24), orientation)  # wider than the grid
    assert warned([scan], **GRID) == []
    narrow = {**GRID, "spatial_size": (20, 30, 20)}  # loses 2 voxels of 2 mm on either side
    assert warned([scan], **narrow) == [f"{scan['label']}: 50% of the lesion lies outside the recipe's grid"]
    with pytest.raises(InputError, match="100% of the lesion lies outside the recipe's grid"):
        refuse([scan], **{**GRID, "spatial_size": (16, 30, 20)})


@pytest.mark.parametrize("orientation", ["RAS", "PSR", "LPI"])
def test_a_grid_about_a_head_off_the_centre_holds_its_lesion(scan: dict, orientation: str) -> None:
    with_head(scan, slice(0, 12), orientation)
    assert warned([scan], **{**GRID, "spatial_size": (12, 30, 20)}) == []
    with_head(scan, slice(2, 14), orientation)
    (line,) = warned([scan], **{**GRID, "spatial_size": (12, 30, 20)})
    assert line == f"{scan['label']}: 50% of the lesion lies outside the recipe's grid"


def with_head(scan: dict, width: slice, orientation: str) -> None:
    """A head this wide, and at the left edge a lesion of 4 voxels."""
    mask, head = np.zeros((2, 24, 30, 20))
    mask[0:4, 10, 10] = 1
    head[width, 5:25, 5:15] = 100
    head += np.random.default_rng(0).random(head.shape)
    for path, data in ((scan["image"], head), (scan["label"], mask.astype(np.uint8))):
        image = nib.Nifti1Image(data, AFFINE)
        turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(orientation))
        nib.save(image.as_reoriented(turn), path)


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


def test_an_image_that_is_a_mask_is_an_error(scan: dict, tmp_path: Path) -> None:
    own = check_scans([{"image": scan["label"], "label": scan["label"]}])[0]["errors"]
    assert f"{scan['label']}: given as an image, but its content is that of the mask {scan['label']}" in own
    other = str(write(tmp_path / "other.nii.gz", (np.random.rand(24, 30, 20) > 0.5).astype(np.uint8)))
    errors = check_scans([{"image": other, "label": scan["label"]}])[0]["errors"]
    assert f"{other}: given as an image, but has two or three values, as a mask" in errors
    assert check_scans([scan])[0]["errors"] == []
