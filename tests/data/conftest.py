"""Tiny BIDS datasets, a datalist of nine subjects, and what ``prepare_datalist`` says of them."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.common.errors import InputError
from scripts.data.datalist import prepare_datalist

VOXEL = 8.0  # mm3 of the small masks' voxels
DESC = "_desc-lesion_mask.nii.gz"


def write_mask(path: Path, n_voxels: int = 10, affine: np.ndarray | None = None, slope: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros(512, np.uint8)
    data[:n_voxels] = 1
    image = nib.Nifti1Image(data.reshape(8, 8, 8), np.diag([2, 2, 2, 1]) if affine is None else affine)
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
        image = nib.Nifti1Image(image.get_fdata() * slope, image.affine, image.header)
    nib.save(image, path)


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.arange(512, dtype=np.int32).reshape(8, 8, 8) + zlib.crc32(str(path).encode()) % 100_000  # no two alike
    nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1])), path)


def write_scan(
    root: Path, subject: str, acquisition: str | None = "spc3", session: str = "1", n_voxels: int = 10
) -> str:
    """One ARC-like scan with its mask; returns the mask's path below ``root``."""
    stem = f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_acq-{acquisition}_T2w"
    write_image(root / f"{stem}.nii.gz")
    write_mask(root / "derivatives/lesion_masks" / (stem + DESC), n_voxels)
    return f"derivatives/lesion_masks/{stem}{DESC}"


def message(*args: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        prepare_datalist(*args, **options)
    return str(error.value)


def datalist() -> dict:
    """Nine subjects, one in each pair of outer fold and third of it."""
    scans = [
        {
            "image": f"sub-{i}.nii.gz",
            "label": f"sub-{i}_mask.nii.gz",
            "subject": str(i),
            "session": None,
            "acquisition": "spc3",
            "lesion_volume": 100.0 * i,
            "fold": i // 3,
            "inner_folds": [None if outer == i // 3 else i % 3 for outer in range(3)],
        }
        for i in range(9)
    ]
    return {
        "name": "nine",
        "simulated": False,
        "spacing": [1.0, 1.0, 1.0],
        "spatial_size": [256, 256, 256],
        "seed": 0,
        "outer_folds": 3,
        "inner_folds": 3,
        "training": scans,
    }


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve subjects, two acquisitions."""
    root = tmp_path / "cohort"
    for i in range(12):
        write_scan(root, f"{i:02}", ("spc3", "spc3p2")[i % 2], n_voxels=10 * i + 1)
    return root
