"""A volume is read with its scale factors."""

from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import AFFINE

from scripts.data.volumes import read_volume


def test_a_volume_is_read_with_its_scale_factors(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scaled.nii.gz")
    raw = nib.load(tmp_path / "scaled.nii.gz").dataobj.get_unscaled()
    _, data = read_volume(tmp_path / "scaled.nii.gz")
    assert np.array_equal(data, raw * 0.5 + 10)
