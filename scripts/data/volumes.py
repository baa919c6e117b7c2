"""Reads a volume in full; nibabel raises a dozen unrelated errors for a broken file, here each is one line."""

import math
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError

LARGEST = float(np.finfo(np.float32).max)  # what transforms and networks compute in
Image = nib.spatialimages.SpatialImage


def read_volume(path: str | Path) -> tuple[Image, np.ndarray]:
    """The 3D image at ``path`` and its voxels, scale factors applied.

    Raises:
        InputError: missing, a git-annex link without content, unreadable, truncated, of a wrong checksum, larger than
            the memory, not 3D, complex, with NaN, infinite values or values beyond float32.
    """
    path = Path(path)
    if is_annexed(path):
        raise InputError(f"{path}: a git-annex link, its content is not here; `datalad get {path}` fetches it")
    try:
        if not path.is_file():
            leads = f" ({os.readlink(path)}, where this link leads)" if path.is_symlink() else ""
            raise InputError(f"{path}: no such file{leads}")
        image = nib.load(path)
        _check_header(path, image)
        data = _voxels(path, image)
        extremes = [float(data.min()), float(data.max())]
        n_bad = 0 if np.isfinite(extremes).all() else np.count_nonzero(~np.isfinite(data))
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: does not fit into the memory that is free") from error
    except Exception as error:  # gzip, zlib and nibabel raise a dozen unrelated types for a broken file
        by_system = getattr(error, "strerror", None)  # such as a file without permission
        reason = f"cannot be read ({by_system})" if by_system else f"not a readable NIfTI image ({error})"
        raise InputError(f"{path}: {' '.join(reason.split())[:160]}") from error
    if n_bad:
        raise InputError(f"{path}: {n_bad} voxels are NaN or infinite")
    if max(*map(abs, extremes), extremes[1] - extremes[0]) > LARGEST:
        raise InputError(f"{path}: values from {extremes[0]:g} to {extremes[1]:g}, more than float32 can hold")
    return image, data


def is_annexed(path: Path) -> bool:
    """Whether git-annex has left only a link to the file's content: a symbolic one, or a text that is a path."""
    if not os.path.isfile(path):
        return "/annex/objects/" in os.path.realpath(path)
    try:
        with path.open("rb") as file:
            return b"/annex/objects/" in file.read(200)
    except OSError:  # reading it says why
        return False


def _check_header(path: Path, image: Image) -> None:
    """Refuse what is known to be wrong before memory is taken for the voxels."""
    if len(image.shape) != 3:
        raise InputError(f"{path}: expected a 3D volume, got shape {image.shape}")
    if image.get_data_dtype().kind == "c":
        raise InputError(f"{path}: complex voxels; give the magnitude image")
    needed = math.prod(image.shape) * max(8, image.get_data_dtype().itemsize)  # scaled voxels are float64
    if hasattr(os, "sysconf") and needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        size = f"{needed / 2**30:,.0f} GiB"
        raise InputError(f"{path}: its header says shape {image.shape}, {size}, more than this machine's memory")


def _voxels(path: Path, image: Image) -> np.ndarray:
    if not isinstance(image, nib.filebasedimages.SerializableImage):  # a pair of files
        return np.asanyarray(image.dataobj)
    with nib.openers.ImageOpener(path) as stream:
        data = np.asanyarray(type(image).from_stream(stream.fobj).dataobj)
        while stream.read(2**20):  # gzip's checksum is at the end, where nibabel does not look
            pass
    return data
