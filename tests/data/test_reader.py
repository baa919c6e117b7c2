"""Odd headers are read one way, by training, by inference and by the page, or refused with a line."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from conftest import INFERENCE, TRAIN
from monai.bundle import ConfigParser
from monai.transforms import Compose, ScaleIntensityd
from scipy.spatial.transform import Rotation

from scripts.browser.site import LIBRARIES, PAGE
from scripts.common.errors import InputError, describe
from scripts.data.check_scans import check_scans
from scripts.data.reader import read_volume

SHAPE, BLOB = (10, 12, 14), (slice(2, 5), slice(6, 9), slice(9, 12))  # its centre is voxel 3, 7, 10
GRID = {"orientation": "RAS", "spacing": [4.0] * 3, "spatial_size": [32] * 3}
PLAIN = np.array([[4.0, 0, 0, -30], [0, 4, 0, 20], [0, 0, 4, -30], [0, 0, 0, 1]])
COS, SIN = np.cos(0.4), np.sin(0.4)
OBLIQUE = np.array([[4 * COS, -3 * SIN, 0, 5], [4 * SIN, 3 * COS, 0, -8], [0, 0, 5, 9], [0, 0, 0, 1.0]])
SHEARED = OBLIQUE @ (np.eye(4) + 0.4 * np.eye(4)[[1, 3, 3, 3]] * [[1], [0], [0], [0]])
AXES = {  # rows of the affine by what each axis of the file runs along
    "LAS": [[-4, 0, 0, 30], [0, 4, 0, 1], [0, 0, 4, 2], [0, 0, 0, 1]],
    "LPS": [[-4, 0, 0, 30], [0, -4, 0, 31], [0, 0, 4, 2], [0, 0, 0, 1]],
    "LIA": [[-4, 0, 0, 30], [0, 0, 4, 1], [0, -4, 0, 32], [0, 0, 0, 1]],
    "ASR": [[0, 0, 4, -51], [4, 0, 0, 2], [0, 4, 0, 3], [0, 0, 0, 1]],
}
HALF_TURN = np.array([[-0.28, 0.96, 0], [0.96, 0.28, 0], [0, 0, -1]])  # about (0.6, 0.8, 0): 2 u u' - 1
UNSET = np.array([[-4.0, 0, 0, 18], [0, 4, 0, -22], [0, 0, 4, -26], [0, 0, 0, 1]])  # the middle at 0, x to the left


def made(
    sform: np.ndarray | None = PLAIN,
    qform: np.ndarray | None = None,
    change: Callable = lambda data: data,
    kind: type = nib.Nifti1Header,
    endianness: str = "<",
    slope: tuple = (1, 0),
    patch: dict | None = None,
    wrap: Callable = bytes,
) -> bytes:
    """A file: a dark volume with a bright blob, which ``change`` changes; ``patch`` has bytes by their place."""
    data = np.random.default_rng(0).integers(0, 10, SHAPE).astype(np.int16)
    data[BLOB] = 900
    data, header = change(data), kind(endianness=endianness)
    header.set_data_shape(data.shape)
    header.set_data_dtype(data.dtype)
    header.set_sform(sform, 0 if sform is None else 1)
    header.set_qform(qform, 0 if qform is None else 1)
    header["pixdim"][1:4] = nib.affines.voxel_sizes(next(a for a in (qform, sform, PLAIN) if a is not None))
    header["vox_offset"] = kind.single_vox_offset
    header.set_xyzt_units("mm")
    header.set_slope_inter(*slope)
    raw = bytearray(header.binaryblock + bytes(4) + data.tobytes(order="F"))
    for place, content in (patch or {}).items():
        raw[place : place + len(content)] = content
    return wrap(raw)


def packed(form: str, *values: float) -> bytes:
    return struct.pack(f"<{form}", *values)


def nan(*where: slice) -> Callable:
    def change(data: np.ndarray) -> np.ndarray:
        data = data.astype(np.float32)
        data[where] = np.nan
        return data

    return change


def colours(data: np.ndarray) -> np.ndarray:
    return np.stack([data % 256] * 3, -1).astype(np.uint8).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]


def members(raw: bytes) -> bytes:
    return b"".join(gzip.compress(raw[i : i + 1000]) for i in range(0, len(raw), 1000))


def quaternion(length: float) -> dict:
    """A half turn as a qform, its quaternion of this length."""
    place = packed("6f", 0.6 * length, 0.8 * length, 0, 5, 6, 7)
    return {"sform": None, "qform": PLAIN, "patch": {256: place, 76: packed("f", 1)}}


ROTATED = nib.affines.from_matvec(4 * HALF_TURN, (5, 6, 7))
MOVED = nib.affines.from_matvec(np.eye(3), (6, 0, 0)) @ PLAIN
SCALED = np.diag([1000, 1000, 1000, 1])
READ = {  # name: how it is made, the affine by hand, and what its warning says
    "both.nii.gz": ({"qform": PLAIN}, PLAIN, ""),
    "sform.nii": ({}, PLAIN, ""),
    "qform.nii": ({"sform": None, "qform": OBLIQUE}, OBLIQUE, ""),
    "neither.nii": ({"sform": None}, UNSET, "both form codes are 0"),
    "disagree.nii": ({"qform": MOVED}, PLAIN, "place a voxel up to 6.0 mm apart; the sform is taken"),
    "twelve_dof.nii": ({"sform": SHEARED, "qform": OBLIQUE}, SHEARED, "apart; the sform is taken"),
    "rounded.nii": (
        {"sform": np.array(AXES["LIA"]), "patch": {76: packed("4f", 1, 4.001, 4.001, 4.001)}},
        AXES["LIA"],
        "",
    ),
    **{
        f"{axes}.nii.gz": ({"sform": np.array(affine), "qform": np.array(affine)}, affine, "")
        for axes, affine in AXES.items()
    },
    "left_handed_qform.nii": ({"sform": None, "qform": np.array(AXES["LAS"])}, AXES["LAS"], ""),
    "oblique.nii": ({"sform": OBLIQUE, "qform": OBLIQUE}, OBLIQUE, ""),
    "metres.nii": ({"sform": np.linalg.inv(SCALED) @ PLAIN, "patch": {123: b"\1"}}, PLAIN, ""),
    "microns.nii": ({"sform": SCALED @ PLAIN, "qform": SCALED @ PLAIN, "patch": {123: b"\3"}}, PLAIN, ""),
    "long_quaternion.nii": (quaternion(1 + 1e-6), ROTATED, ""),
    "no_qfac.nii": ({"sform": None, "qform": OBLIQUE, "patch": {76: packed("f", 0)}}, OBLIQUE, ""),
    "unknown_code.nii": ({"sform": MOVED, "qform": PLAIN, "patch": {254: packed("h", 9)}}, PLAIN, ""),
    "one_volume.nii": ({"change": lambda data: data[..., None]}, PLAIN, ""),
    "float64.nii": ({"change": lambda data: data * 1.1}, PLAIN, ""),
    "slope.nii": ({"slope": (0.3, 7.7)}, PLAIN, ""),
    "nan_outside.nii": ({"change": nan(slice(0, 2))}, PLAIN, "336 voxels are NaN, taken as 0"),
    "big_endian.nii": ({"endianness": ">", "change": lambda data: data.astype(">i2")}, PLAIN, ""),
    "CAPITALS.NII.GZ": ({"wrap": gzip.compress}, PLAIN, ""),
    "nifti2.nii": ({"kind": nib.Nifti2Header, "qform": PLAIN}, PLAIN, ""),
    "zipped.nii": ({"wrap": gzip.compress}, PLAIN, ""),
    "plain.nii.gz": ({}, PLAIN, ""),
    "members.nii.gz": ({"wrap": members}, PLAIN, ""),
    "zeros_behind.nii.gz": ({"wrap": lambda raw: gzip.compress(raw) + bytes(10240)}, PLAIN, ""),
}
REFUSED = {  # name: how it is made, and what its line says
    "no_rotation.nii": (quaternion(2), "its qform is no rotation; repair the header"),
    "voxels_at_0.nii": ({"patch": {108: packed("f", 0)}}, "does not say where the voxels begin"),
    "two_volumes.nii": (
        {"change": lambda data: np.stack([data] * 2, -1)},
        r"expected a 3D volume, got shape (10, 12, 14, 2)",
    ),
    "empty.nii": ({"patch": {42: packed("h", 0)}}, "expected a 3D volume, got shape (0, 12, 14)"),
    "colours.nii": ({"change": colours}, "its voxels are colours"),
    "complex.nii": ({"change": lambda data: data.astype(np.complex64)}, "give the magnitude image"),
    "nan_inside.nii": ({"change": nan(slice(4, 6))}, "336 voxels are NaN, 33% of those in the middle"),
    "infinite.nii": ({"change": lambda data: np.where(data == 900, np.inf, data)}, "27 voxels are NaN or infinite"),
    "metres_of_mm.nii": ({"patch": {123: b"\1"}}, "spacing 4e+03x4e+03x4e+03 mm, its unit being metres"),
    "flat.nii": ({"sform": PLAIN @ np.diag([1, 0, 1, 1])}, "its affine is not one of a scan (spacing 4x0x4 mm)"),
    "half.nii": ({"patch": {344: b"ni1\0"}}, "half of a pair of files (.hdr and .img); `nib-convert"),
    "pointer.nii.gz": ({"wrap": lambda raw: b"version https://git-lfs.github.com/spec/v1\noid"}, "`git lfs pull`"),
    "dicom.nii": ({"wrap": lambda raw: bytes(128) + b"DICM" + bytes(raw)}, "a DICOM file; `dcm2niix` converts it"),
    "short.nii": ({"wrap": lambda raw: bytes(raw[:-100])}, "the file ends before its voxels do"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of these files."""
    folder = tmp_path_factory.mktemp("headers")
    for name, (options, *_) in (READ | REFUSED).items():
        content = made(**options)
        if name in ("both.nii.gz", *(f"{axes}.nii.gz" for axes in AXES)):
            content = gzip.compress(content)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> dict:
    """What the page's reader makes of them, in Node.js."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("Node.js and npm are not installed, in which the page's reader runs")
    shutil.copy(PAGE / "nifti.js", folder / "nifti.mjs")
    pako = json.loads((PAGE / "package.json").read_text())["dependencies"]["pako"]
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", f"pako@{pako}"]
    if subprocess.run(command, cwd=folder, capture_output=True).returncode:
        pytest.skip("npm could not fetch pako, by which the page's reader unpacks gzip")
    (folder / "pako.js").write_bytes((folder / "node_modules" / LIBRARIES["pako.js"]).read_bytes())
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "all.mjs").write_text(
        """import { readFile } from 'node:fs/promises'
        import { readNifti, ScanError } from './nifti.mjs'
        const found = {}
        for (const name of process.argv.slice(2)) {
          try {
            const { affine, sides, sidesKnown, values, warnings } = await readNifti(new Blob([await readFile(name)]))
            found[name] = { affine, sides, sidesKnown, values: [...values], warnings }
          } catch (error) {
            if (!(error instanceof ScanError)) throw error
            found[name] = { error: error.message }
          }
        }
        console.log(JSON.stringify(found))"""
    )
    done = subprocess.run([node, "all.mjs", *READ, *REFUSED], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def transforms() -> dict[str, Compose]:
    """What training and inference do with a scan, by their configs."""
    train, inference = ConfigParser(), ConfigParser()
    train.read_config(TRAIN)
    inference.read_config(INFERENCE)
    for key, value in GRID.items():
        train[key] = value
    inference["weights"] = SimpleNamespace(**GRID, intensity=ScaleIntensityd("image"))
    return {
        "training": train.get_parsed_content("validate#preprocessing"),
        "inference": inference.get_parsed_content("preprocessing"),
    }


@pytest.mark.parametrize("name", READ)
def test_an_odd_header_is_read_one_way(folder: Path, page: dict, name: str) -> None:
    _, affine, warning = READ[name]
    path, affine = str(folder / name), np.array(affine, float)
    volume, centre = read_volume(path), (affine @ [3, 7, 10, 1])[:3]
    assert volume.shape == SHAPE
    np.testing.assert_allclose(volume.affine, affine, atol=2e-5)
    assert volume.sides_known == (name != "neither.nii")
    assert volume.sha256 == sha256(Path(path).read_bytes()).hexdigest()
    (report,) = check_scans([{"image": path}])
    assert report["errors"] == []
    assert len(report["warnings"]) == bool(warning)
    assert warning in "".join(report["warnings"])
    for made_by, transform in transforms().items():
        item = transform({"image": path, "label": path})
        bright = item["image"][0].numpy() * (item["image"][0].numpy() > 0.05)
        places = np.argwhere(bright)
        found = item["image"].affine.numpy() @ [*np.average(places, axis=0, weights=bright[bright > 0]), 1]
        np.testing.assert_allclose(found[:3], centre, atol=0.6, err_msg=made_by)
    shown = page[name]
    assert "error" not in shown
    np.testing.assert_allclose(shown["affine"], volume.affine, atol=2e-5)
    assert (tuple(shown["sides"]), shown["sidesKnown"]) == (SHAPE, volume.sides_known)
    np.testing.assert_array_equal(np.float32(shown["values"]), volume.data.ravel(order="F"))
    assert [f"{path}: {line}" for line in shown["warnings"]] == report["warnings"]


@pytest.mark.parametrize("name", [n for n in READ if n not in ("zipped.nii", "plain.nii.gz", "long_quaternion.nii")])
def test_where_nibabel_reads_a_file_its_affine_and_voxels_are_ours(folder: Path, name: str) -> None:
    image, volume = nib.load(folder / name), read_volume(folder / name)
    to_mm = {"metres.nii": 1000, "microns.nii": 0.001}.get(name, 1)
    np.testing.assert_allclose(volume.affine[:3], to_mm * image.affine[:3], atol=1e-9)
    data = np.nan_to_num(np.asarray(image.dataobj)).reshape(SHAPE)
    np.testing.assert_array_equal(volume.data, data.astype(np.float32))
    assert volume.header["sform_code"] == image.header["sform_code"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_a_line_everywhere(folder: Path, page: dict, name: str) -> None:
    path = str(folder / name)
    (report,) = check_scans([{"image": path}])
    (line,) = report["errors"]
    assert line.startswith(f"{path}: ")
    assert REFUSED[name][1] in line
    for transform in transforms().values():
        with pytest.raises(Exception, match=r"^applying transform") as error:
            transform({"image": path, "label": path})
        assert describe(error.value) == line
    assert page[name]["error"]
    if name in ("no_rotation.nii", "metres_of_mm.nii", "flat.nii"):
        assert page[name]["error"].replace("4000x", "4e+03x").replace("4000 ", "4e+03 ") == line.removeprefix(
            f"{path}: "
        )


@pytest.mark.parametrize("name", ["pair.hdr", "pair.img", "old.mgz", "scan.nrrd"])
def test_other_endings_are_refused_with_a_line_that_says_how_to_convert(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"whatever it holds")
    with pytest.raises(InputError, match=f"{name}: only .nii and .nii.gz are read; `nib-convert FILE NEW.nii.gz`"):
        read_volume(tmp_path / name)


def test_a_volume_is_held_once_in_float32_where_a_slope_is_set(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 900, (64, 80, 64)).astype(np.int16), PLAIN)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scan.nii.gz")
    read_volume(tmp_path / "scan.nii.gz")
    tracemalloc.start()
    volume = read_volume(tmp_path / "scan.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.data.nbytes == 4 * 64 * 80 * 64
    packed_and_a_block = os.path.getsize(tmp_path / "scan.nii.gz") + 24 * 2**18
    assert peak < volume.data.nbytes + packed_and_a_block


@pytest.mark.parametrize("made_by", ["training", "inference"])
def test_neither_offset_nor_gain_of_a_scan_smaller_than_the_grid_matter(tmp_path: Path, made_by: str) -> None:
    head = np.random.default_rng(0).random((10, 12, 14)).astype(np.float32)
    path, found = str(tmp_path / "scan.nii"), []
    for gain, offset in ((1, 0), (300, 0), (1, 100), (7, -40)):
        nib.save(nib.Nifti1Image(gain * head + np.float32(offset), OBLIQUE), path)
        found.append(transforms()[made_by]({"image": path, "label": path})["image"].numpy())
    assert found[0].min() == 0
    assert (found[0] == 0).mean() > 0.5  # the padding
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4)


@pytest.mark.parametrize("degrees", [170, 176.5, 179, 179.9])
def test_a_qform_near_a_half_turn_keeps_its_tilt(tmp_path: Path, degrees: float) -> None:
    turned = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    image = nib.Nifti1Image(np.random.default_rng(0).random((40, 50, 45)).astype(np.float32), None)
    image.set_qform(nib.affines.from_matvec(4 * turned, [9, -8, 7]), 1)
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").affine, nib.load(tmp_path / "a.nii").affine, atol=1e-4)


def test_a_file_that_somebody_holds_is_read_again_only_if_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), path)
    first = read_volume(path)
    assert read_volume(path) is first
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), 2, np.float32), np.eye(4)), path)
    os.utime(path, ns=(1, 1))
    assert read_volume(path).data.max() == 2
    assert first.data.max() == 1
