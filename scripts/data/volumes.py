"""Reads volumes in full, and compares grids; where nibabel raises a dozen unrelated errors, here each is one line."""

import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from scripts.common.errors import InputError

LARGEST = float(np.finfo(np.float32).max)  # what transforms and networks compute in
Image = nib.spatialimages.SpatialImage


def read_volume(path: str | Path) -> tuple[Image, np.ndarray]:
    """The 3D image at ``path`` and its voxels, scale factors applied.

    Raises:
        InputError: it is missing or cannot be read in full, is not 3D, complex, or holds what float32 cannot.
    """
    path = Path(path)
    if is_annexed(path):
        raise InputError(f"{path}: a git-annex link, its content is not here; `datalad get {path}` fetches it")
    try:
        return _read(path)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into the memory that is free") from error
    except Exception as error:  # gzip, zlib and nibabel raise a dozen unrelated types for a broken file
        by_system = getattr(error, "strerror", None)  # such as a file without permission
        reason = f"cannot be read ({by_system})" if by_system else f"not a readable NIfTI image ({error})"
        raise InputError(f"{path}: {' '.join(reason.split())[:160]}") from error


def is_annexed(path: Path) -> bool:
    """Whether git-annex has left only a link to the file's content: a symbolic one, or a text that is a path."""
    if not os.path.isfile(path):
        return "/annex/objects/" in os.path.realpath(path)
    try:
        with path.open("rb") as file:
            return b"/annex/objects/" in file.read(200)
    except OSError:  # reading it says why
        return False


def off_grid(label: Image, image: Image) -> str | None:
    """How the grid of ``label`` differs from its image's; None if by less than a tenth of a voxel."""
    if label.shape != image.shape:
        return f"shape {label.shape}, but its image has {image.shape}"
    ours, theirs = voxel_sizes(label.affine), voxel_sizes(image.affine)
    if not np.allclose(ours, theirs, rtol=0.01):
        return f"spacing {ours.round(3).tolist()} mm, but its image has {theirs.round(3).tolist()}"
    axes, expected = ("".join(map(str, nib.aff2axcodes(volume.affine))) for volume in (label, image))
    if axes != expected:
        return f"orientation {axes}, but its image has {expected}"
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(image.shape) - 1)
    shift = np.abs(apply_affine(label.affine - image.affine, corners)).max()
    return f"its affine moves it {shift:.1f} mm away from its image" if shift > 0.1 * theirs.min() else None


def in_ras(image: Image, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A view of the ``data`` (D, H, W) of ``image`` with its axes along R, A and S, and their voxel sizes in mm."""
    turn = nib.io_orientation(image.affine)
    return nib.apply_orientation(data, turn), voxel_sizes(image.affine)[np.argsort(turn[:, 0])]


def _read(path: Path) -> tuple[Image, np.ndarray]:
    if not path.is_file():
        leads = f" ({os.readlink(path)}, where this link leads)" if path.is_symlink() else ""
        raise InputError(f"{path}: no such file{leads}")
    image = nib.load(path)  # the header; no memory is taken for the voxels yet
    shape, dtype = image.shape, image.get_data_dtype()
    if len(shape) != 3:
        raise InputError(f"{path}: expected a 3D volume, got shape {shape}")
    if dtype.kind == "c":
        raise InputError(f"{path}: complex voxels; give the magnitude image")
    size = math.prod(shape) * max(8, dtype.itemsize) / 2**30  # scaled voxels are float64
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:
        raise InputError(f"{path}: its header says shape {shape}, {size:,.0f} GiB, more than this machine's memory")
    if isinstance(image, nib.filebasedimages.SerializableImage):
        with nib.openers.ImageOpener(path) as stream:
            data = np.asanyarray(type(image).from_stream(stream.fobj).dataobj)
            while stream.read(2**20):  # gzip's checksum is at the end, where nibabel does not look
                pass
    else:  # a pair of files
        data = np.asanyarray(image.dataobj)
    low, high = float(data.min()), float(data.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{path}: {np.count_nonzero(~np.isfinite(data))} voxels are NaN or infinite")
    if max(-low, high, high - low) > LARGEST:
        raise InputError(f"{path}: values from {low:g} to {high:g}, more than float32 can hold")
    return image, data
