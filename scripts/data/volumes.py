"""nibabel raises a dozen unrelated errors for a broken file, often without its name: here each is one line."""

from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.common.errors import InputError


def read_volume(path: str | Path) -> tuple[nib.spatialimages.SpatialImage, np.ndarray]:
    """The 3D image at ``path`` and its voxels, scale factors applied.

    Raises:
        InputError: missing, a git-annex link without content, unreadable, truncated, not 3D, NaN or infinite.
    """
    path = Path(path)
    if is_annexed(path):
        raise InputError(f"{path}: a git-annex link, its content is not here; `datalad get {path}` fetches it")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
        finite = np.isfinite(data)
    except Exception as error:  # gzip, zlib and nibabel raise a dozen unrelated types for a broken file
        raise InputError(f"{path}: not a readable NIfTI image ({' '.join(str(error).split())[:120]})") from error
    if data.ndim != 3:
        raise InputError(f"{path}: expected a 3D volume, got shape {data.shape}")
    if not finite.all():
        raise InputError(f"{path}: {np.count_nonzero(~finite)} voxels are NaN or infinite")
    return image, data


def is_annexed(path: Path) -> bool:
    """Whether git-annex has left only a link to the file's content: a symbolic one, or a text that is a path."""
    if not path.is_file():
        return path.is_symlink()
    with path.open("rb") as file:
        return b"/annex/objects/" in file.read(200)
