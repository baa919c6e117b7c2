"""A volume is read with its scale factors, whatever the format; what git-annex has not fetched is known."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE

from scripts.data.volumes import is_annexed, read_volume


def test_a_volume_is_read_with_its_scale_factors(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), AFFINE)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scaled.nii.gz")
    raw = nib.load(tmp_path / "scaled.nii.gz").dataobj.get_unscaled()
    image, data = read_volume(tmp_path / "scaled.nii.gz")
    assert np.array_equal(data, raw * 0.5 + 10)
    assert np.array_equal(image.get_fdata(), data)  # whoever reads it again may


@pytest.mark.parametrize("name", ["plain.nii", "two.nii.gz", "pair.img", "analyze.hdr", "old.mgz"])
def test_every_kind_of_file_that_nibabel_reads_is_read(tmp_path: Path, name: str) -> None:
    kinds = {"two": nib.Nifti2Image, "pair": nib.Nifti1Pair, "analyze": nib.Spm99AnalyzeImage, "old": nib.MGHImage}
    expected = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    kind = kinds.get(name.partition(".")[0], nib.Nifti1Image)
    nib.save(kind(expected.astype(np.float32) if kind is nib.MGHImage else expected, AFFINE), tmp_path / name)
    assert np.array_equal(read_volume(tmp_path / name)[1], expected)


def test_a_link_is_annexed_only_if_it_leads_into_the_annex(tmp_path: Path) -> None:
    (tmp_path / "annexed").symlink_to("../.git/annex/objects/x/y/key")
    (tmp_path / "to_annexed").symlink_to("annexed")
    (tmp_path / "gone").symlink_to("moved/elsewhere.nii.gz")
    (tmp_path / "circle").symlink_to("circle")
    assert [is_annexed(tmp_path / name) for name in ("annexed", "to_annexed", "gone", "circle")] == [
        True,
        True,
        False,
        False,
    ]
