"""MONAI's readers die on the first bad scan, often without its name: this finds scans and checks them all at once."""

import glob
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm


class InputError(SystemExit):
    """What the user gave is wrong: the message is for them, the exit status is 1.

    It is a ``SystemExit`` because MONAI's config parser wraps every ``Exception`` in pages of traceback.
    """


def find_scans(input: str | None) -> list[dict]:
    """The scans to segment, as ``{"image": path}``, each read once in full.

    Args:
        input: a NIfTI file, a glob, or a folder, in which every ``*_T2w`` file is taken, or, where there is none,
            every NIfTI file that is not a mask; a BIDS ``derivatives`` folder is left out.

    Raises:
        InputError: no input, nothing found, or scans that cannot be used (a line for each).
    """
    if not input:
        raise InputError("--input is missing: give a NIfTI file, a folder or a glob")
    path = Path(input)
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*.nii*")) if "derivatives" not in p.relative_to(path).parts]
        found = [p for p in found if "_T2w.nii" in p.name] or [p for p in found if "mask" not in p.name]
    else:
        found = [path] if path.exists() or path.is_symlink() else [Path(p) for p in sorted(glob.glob(input))]
    if not found:
        raise InputError(f"--input {input}: no NIfTI file (*.nii, *.nii.gz) there")
    twins = [p for p in found if p.suffix == ".nii" and p.with_name(f"{p.name}.gz") in found]
    if twins:
        raise InputError("\n".join(f"{p}: {p.name}.gz beside it would give a mask of the same name" for p in twins))
    scans = [{"image": str(p.absolute())} for p in found]
    check_scans(scans)
    return scans


def check_scans(scans: list[dict], empty_label_ok: bool = True) -> None:
    """Read every ``image`` (and ``label``, where a scan has one) in full.

    Args:
        scans: dictionaries with an ``image`` path and, optionally, a ``label`` path.
        empty_label_ok: accept a mask without a lesion voxel.

    Raises:
        InputError: one line per file that is missing, unreadable, not 3D, not finite, constant, or a mask that is
            empty or does not lie on its image's grid.
    """
    with ThreadPoolExecutor(8) as pool:  # not one per core: each holds a volume and its mask
        found = pool.map(lambda scan: _scan_problem(scan, empty_label_ok), scans)
        problems = [p for p in tqdm(found, "Checking scans", len(scans), leave=False) if p]
    if problems:
        raise InputError("\n".join(problems))


def _scan_problem(scan: dict, empty_label_ok: bool) -> str | None:
    """What is wrong with one scan, naming the file, or None."""
    try:
        image, data = read_volume(scan["image"])
        if data.min() == data.max():
            return f"{scan['image']}: every voxel is {data.flat[0]:g}; is this the right file?"
        if "label" not in scan:
            return None
        label, mask = read_volume(scan["label"])
    except InputError as error:
        return str(error)
    if label.shape != image.shape:
        return f"{scan['label']}: shape {label.shape}, but its image has {image.shape}: {scan['image']}"
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in image.shape))]).T
    shift = np.abs((label.affine - image.affine) @ corners).max()
    if shift > 0.1 * min(image.header.get_zooms()[:3]):
        return f"{scan['label']}: its affine moves it {shift:.1f} mm away from its image {scan['image']}"
    if not empty_label_ok and not (mask > 0).any():
        return f"{scan['label']}: empty lesion mask in the training set; take this scan out of the datalist"
    return None


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
