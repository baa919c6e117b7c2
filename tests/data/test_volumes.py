"""What git-annex has not fetched is known, and masks are told from scans by their values."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from scripts.common.errors import InputError
from scripts.data.reader import read_volume
from scripts.data.volumes import along, is_annexed, is_like_a_mask, lesion_of, ras_axes


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


@pytest.mark.parametrize(
    ("values", "like"),
    [
        ([0, 1], True),
        ([0, 255], True),
        ([0, 0.017], True),
        ([0, 1, 2], True),
        ([0, 1, 2, 3], False),
        ([0, 0.5, 1], False),
        ([7], False),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_volume_of_two_values_or_three_whole_ones_is_like_a_mask(values: list, like: bool, order: str) -> None:
    data = np.resize(np.array(values, np.float32), (50, 60, 40))
    assert is_like_a_mask(np.array(data, order=order)) is like


def test_a_mask_of_whole_values_is_refused_where_its_edge_is_gradual(tmp_path: Path) -> None:
    ball = ((np.indices((40, 40, 40)) - 20) ** 2).sum(0) < 12**2
    smooth = (255 * gaussian_filter(ball.astype(float), 2)).round().astype(np.uint8)
    with pytest.raises(InputError, match=r"a.nii: \d+ different values above 0 .an interpolated mask or a probability"):
        lesion_of(read_volume(save(tmp_path / "a.nii", smooth)))
    numbered, n = label(np.random.default_rng(0).random((40, 40, 40)) > 0.9)
    assert n > 255
    assert (lesion_of(read_volume(save(tmp_path / "b.nii", numbered.astype(np.int16)))) == (numbered > 0)).all()


def save(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    return path


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PIR", "SRP"])
def test_axes_of_an_orientation_are_those_that_nibabel_finds(orientation: str) -> None:
    axes = nib.orientations.axcodes2ornt(orientation)[:, 0].astype(int)
    assert ras_axes(orientation) == axes.tolist()
    ornt = nib.orientations.axcodes2ornt
    to = nib.orientations.ornt_transform(ornt("RAS"), ornt(orientation))
    turned = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.eye(4)).as_reoriented(to)
    assert along((2, 3, 4), orientation) == list(turned.shape)
