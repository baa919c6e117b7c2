"""Read every scan and every mask, one way for all.

A file is taken by its content, NIfTI-1 or -2 of one 3D volume, compressed or not; its name must end with .nii or
.nii.gz. From voxels to mm lead the sform if its code is set, else the qform; where neither is set, nibabel's base
affine, with a warning, and left and right are unknown. Metres and microns are made mm.
"""

import gzip
import hashlib
import io
import math
import os
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import nibabel as nib
import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from nibabel.affines import voxel_sizes

from scripts.common.errors import InputError, one_line
from scripts.data.volumes import Volume, is_annexed, largest_shift

LARGEST = float(np.finfo(np.float32).max)  # what transforms and networks compute in
BLOCK = 2**18  # voxels that are unpacked and scaled at once
MM = {1: ("metres", 1000.0), 3: ("microns", 0.001)}  # by NIfTI's code of the unit; all others are taken for mm
_held: WeakValueDictionary[tuple, Volume] = WeakValueDictionary()  # by path and what a change of the file changes
STARTS = {  # of files that are no images
    b"version https://git-lfs": "a Git LFS pointer, its content is not here; `git lfs pull` fetches it",
    b"\0" * 128 + b"DICM": "a DICOM file; `dcm2niix` converts it",
}


class ScanReader(ImageReader):
    """``read_volume`` for MONAI's ``LoadImage``; raises what it does. ``meta`` has ``sides_known``, too."""

    def verify_suffix(self, filename: Any) -> bool:
        """Whether to take a file: all, so that none is read in another way."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Any:
        """The path as it is: where this raised, MONAI would try its other readers."""
        return data

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels (X, Y, Z) and what MONAI's transforms want to know of them."""
        (path,) = ensure_tuple(img)
        volume = read_volume(path)
        return volume.data, {
            MetaKeys.AFFINE: volume.affine,
            MetaKeys.ORIGINAL_AFFINE: volume.affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(volume.shape),
            MetaKeys.ORIGINAL_CHANNEL_DIM: float("nan"),  # there is none
            MetaKeys.SPACE: SpaceKeys.RAS,
            "sides_known": volume.sides_known,
        }


def read_volume(path: str | Path) -> Volume:
    """The scan or mask at ``path``, read in full; a file that has not changed is not read again while one holds it.

    Raises:
        InputError: it is missing, cannot be read in full, is not one 3D volume of real numbers, holds what float32
            cannot, is NaN inside, or has an affine that is not one of a scan.
    """
    path = Path(path)
    if is_annexed(path):
        raise InputError(f"{path}: a git-annex link, its content is not here; `datalad get {path}` fetches it")
    try:
        if not path.is_file():
            leads = f" ({os.readlink(path)}, where this link leads)" if path.is_symlink() else ""
            raise InputError(f"{path}: no such file{leads}")
        key = (str(path), *[getattr(path.stat(), name) for name in ("st_ino", "st_size", "st_mtime_ns")])
        volume = _held[key] = _held.get(key) or _read(path)
        return volume
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into the memory that is free") from error
    except Exception as error:  # gzip, zlib and nibabel raise a dozen unrelated types for a broken file
        by_system = getattr(error, "strerror", None)  # such as a file without permission
        reason = f"cannot be read ({by_system})" if by_system else f"not a readable NIfTI image ({error})"
        raise InputError(f"{path}: {one_line(reason)}") from error


def refuse_name(path: Path) -> None:
    """Raise ``InputError`` if no file of this name is read."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise InputError(f"{path}: only .nii and .nii.gz are read; `nib-convert FILE NEW.nii.gz` converts it")


def _read(path: Path) -> Volume:
    refuse_name(path)
    content = path.read_bytes()
    if reason := next((text for start, text in STARTS.items() if content.startswith(start)), None):
        raise InputError(f"{path}: {reason}")
    stream = io.BytesIO(content)
    if content.startswith(b"\x1f\x8b"):
        stream = gzip.GzipFile(fileobj=stream)
    header, shape = _header(path, stream.read(nib.Nifti2Header.sizeof_hdr))
    affine, warnings = _affine(path, header, shape)
    data, n_nan = _voxels(path, header, shape, stream)
    while stream.read(BLOCK):  # gzip's checksum is at the end
        pass
    if n_nan:
        inner = data[tuple(slice(side // 4, side - side // 4) for side in shape)]
        if (share := float(np.isnan(inner).mean())) > 0.01:
            raise InputError(f"{path}: {n_nan} voxels are NaN, {share:.0%} of those in the middle of the volume")
        warnings.append(f"{path}: {n_nan} voxels are NaN, taken as 0")
        data[np.isnan(data)] = 0
    known = bool(header["sform_code"] or header["qform_code"])
    return Volume(str(path), data, affine, header, known, n_nan, hashlib.sha256(content).hexdigest(), warnings)


def _header(path: Path, start: bytes) -> tuple[nib.Nifti1Header, tuple[int, ...]]:
    """The header in the first bytes of a file, and the volume's shape."""
    magic = start[4:7] if start[4:7] in (b"n+2", b"ni2") else start[344:347]
    kind = {b"n+1": nib.Nifti1Header, b"n+2": nib.Nifti2Header}.get(magic)
    if magic in (b"ni1", b"ni2"):
        raise InputError(f"{path}: half of a pair of files (.hdr and .img); `nib-convert FILE NEW.nii.gz` joins them")
    if kind is None:
        raise InputError(f"{path}: not a readable NIfTI image (its header is none of NIfTI-1 or -2)")
    header = kind(start[: kind.sizeof_hdr])
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    if len(shape) < 3 or min(shape) < 1 or max(shape[3:], default=1) > 1:
        raise InputError(f"{path}: expected a 3D volume, got shape {shape}")
    shape = shape[:3]
    if dtype.fields:
        raise InputError(f"{path}: its voxels are colours; give the scan as the scanner stored it")
    if dtype.kind == "c":
        raise InputError(f"{path}: complex voxels; give the magnitude image")
    if header["vox_offset"] < kind.single_vox_offset:
        raise InputError(f"{path}: its header does not say where the voxels begin (vox_offset {header['vox_offset']})")
    size = math.prod(shape) * 4 / 2**30
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:
        raise InputError(f"{path}: its header says shape {shape}, {size:,.0f} GiB, more than this machine's memory")
    return header, shape


def _affine(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """From voxels to mm, by the rule above, and what is to be known of it."""
    qform, threshold = None, header.quaternion_threshold
    for header.quaternion_threshold in (threshold, 1e-3):  # the second takes what other programs have rounded
        try:
            qform = header.get_qform() if header["qform_code"] else None
            break
        except ValueError:
            continue
    else:
        if not header["sform_code"]:
            raise InputError(f"{path}: its qform is no rotation; repair the header")
    affine = header.get_sform() if header["sform_code"] else header.get_base_affine() if qform is None else qform
    unit, to_mm = MM.get(int(header["xyzt_units"]) % 8, ("mm", 1.0))
    affine = np.diag([to_mm, to_mm, to_mm, 1]) @ affine
    zooms, volume = voxel_sizes(affine), abs(np.linalg.det(affine[:3, :3]))
    shown, warnings = "x".join(f"{zoom:.3g}" for zoom in zooms) + " mm", []
    if not (volume >= 0.1 * np.prod(zooms) and min(zooms) >= 0.01 and max(zooms) <= 100):  # NaN is not, either
        meant = f", its unit being {unit}" if to_mm != 1 else ""
        raise InputError(f"{path}: its affine is not one of a scan (spacing {shown}{meant}); repair the header")
    if min(zooms) < 0.2 or max(zooms) > 15:
        warnings.append(f"{path}: unusual spacing, {shown}")
    if not (header["sform_code"] or header["qform_code"]):
        warnings.append(f"{path}: its header does not say where left and right are (both form codes are 0)")
    if header["sform_code"] and qform is not None:
        shift = to_mm * largest_shift(header.get_sform(), qform, shape)
        if shift > 0.1 * min(zooms):
            warnings.append(f"{path}: sform and qform place a voxel up to {shift:.1f} mm apart; the sform is taken")
    return affine, warnings


def _voxels(path: Path, header: nib.Nifti1Header, shape: tuple[int, ...], stream: Any) -> tuple[np.ndarray, int]:
    """All voxels, and how many are NaN; block by block, so that no other copy of the volume is ever held."""
    dtype, (slope, inter) = header.get_data_dtype(), header.get_slope_inter()
    data, low, high, infinite, n_nan = np.empty(math.prod(shape), np.float32), np.inf, -np.inf, 0, 0
    stream.seek(int(header["vox_offset"]))
    for first in range(0, data.size, BLOCK):
        part = data[first : first + BLOCK]
        if len(raw := stream.read(part.size * dtype.itemsize)) < part.size * dtype.itemsize:
            raise EOFError("the file ends before its voxels do")
        block = np.frombuffer(raw, dtype)
        if slope is not None and (slope, inter) != (1, 0):
            block = block * np.float64(slope) + np.float64(inter)
        low, high = min(low, float(np.fmin.reduce(block))), max(high, float(np.fmax.reduce(block)))
        if block.dtype.kind == "f":
            infinite += int(np.isinf(block).sum())
            n_nan += int(np.isnan(block).sum())
        with np.errstate(over="ignore"):  # refused below
            part[:] = block
    if infinite:
        raise InputError(f"{path}: {n_nan + infinite} voxels are NaN or infinite")
    if max(-low, high, high - low) > LARGEST:
        raise InputError(f"{path}: values from {low:g} to {high:g}, more than float32 can hold")
    return data.reshape(shape, order="F"), n_nan
