"""A mask says where it lies in the words of its scan: both forms, their codes, the units, and nothing else."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from scripts.common.errors import InputError
from scripts.data.reader import read_volume
from scripts.inference.scan_header import encode

SHAPE = (5, 6, 7)


def scan_of(kind: type, path: Path, order: str = "<") -> nib.Nifti1Image:
    """In axes of a sagittal scan, with an sform that is sheared away from the qform, and a note of who it is."""
    turned = Rotation.from_euler("xyz", [5, -8, 93], degrees=True).as_matrix() @ np.diag([1.1, 0.9, 3.0])
    qform = nib.affines.from_matvec(turned, [10, -20, 30])
    header = kind.header_class(endianness=order)
    image = kind(np.random.default_rng(0).random(SHAPE).astype(np.float32), None, header)
    image.set_qform(qform, 1)
    image.set_sform(qform + np.array([[0, 0.1, 0, 3], [0, 0, 0.05, 0], [0, 0, 0, -2], [0, 0, 0, 0]]), 4)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"], image.header["cal_max"] = b"Anna", 0.5
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Anna"))
    nib.save(image, path)
    return nib.load(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nibabel_reads_the_same_forms_from_mask_and_scan(tmp_path: Path, kind: type, order: str) -> None:
    scan, data = scan_of(kind, tmp_path / "scan.nii", order), np.resize([0, 1, 1], SHAPE).astype(np.uint8)
    (tmp_path / "mask.nii.gz").write_bytes(encode(data, read_volume(tmp_path / "scan.nii")))
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert type(mask) is kind
    for form in ("get_qform", "get_sform"):
        (ours, our_code), (theirs, their_code) = (getattr(v, form)(coded=True) for v in (mask, scan))
        assert our_code == their_code
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(mask.affine, scan.affine)
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), data)
    assert mask.get_data_dtype().kind == "u"
    assert mask.get_data_dtype().itemsize == 1
    assert b"Anna" not in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())
    assert mask.header["cal_max"] == 0


def test_a_form_that_was_not_set_stays_so(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.diag([2.0, 2, 2, 1]))
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "scan.nii")
    (tmp_path / "mask.nii.gz").write_bytes(encode(np.ones(SHAPE, np.uint8), read_volume(tmp_path / "scan.nii")))
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 2)


def test_a_volume_with_one_time_point_has_a_mask_of_three_dimensions(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((*SHAPE, 1), np.float32), np.eye(4)), tmp_path / "scan.nii")
    (tmp_path / "mask.nii.gz").write_bytes(encode(np.ones(SHAPE, np.uint8), read_volume(tmp_path / "scan.nii")))
    assert nib.load(tmp_path / "mask.nii.gz").shape == SHAPE


def test_another_shape_is_a_line(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4)), tmp_path / "scan.nii")
    with pytest.raises(InputError, match=r"scan.nii: has shape \(5, 6, 7\), but its mask \(5, 6, 8\)"):
        encode(np.ones((5, 6, 8), np.uint8), read_volume(tmp_path / "scan.nii"))
