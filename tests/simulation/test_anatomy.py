"""A head's maps: tissue where it is in MNI space, and distances in mm."""

import nibabel as nib
import numpy as np
import torch

from scripts.simulation.anatomy import box, sample


def at(head: torch.Tensor, *mni: float) -> np.ndarray:
    return sample(head, torch.tensor(mni).reshape(3, 1, 1, 1)).ravel()


def test_tissue_is_where_the_atlas_has_it(head: torch.Tensor) -> None:
    fractions = head[:3].sum(0)
    assert float(fractions.max()) < 1.01
    assert float(head[:3].min()) >= 0
    assert at(head, -24, -24, 28)[2] > 0.9  # corona radiata
    assert at(head, -10, -4, 20)[0] > 0.5  # body of the left lateral ventricle
    brain_ml = float((fractions > 0.5).sum()) * 4**3 / 1000
    assert 1500 < brain_ml < 2200


def test_distances_are_in_mm(head: torch.Tensor) -> None:
    assert at(head, 0, -18, 98)[4] < -10  # above the scalp
    assert 20 < at(head, -24, -24, 28)[4] < 60
    assert at(head, -10, -4, 20)[5] < 4
    near, far = at(head, -24, -4, 24)[5], at(head, -40, -4, 40)[5]
    assert 4 < near < 20
    assert near + 15 < far < near + 30


def test_sampling_at_the_grids_own_places_changes_nothing(head: torch.Tensor) -> None:
    shape, affine = box(4)
    places = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    np.testing.assert_allclose(sample(head, torch.from_numpy(places).movedim(-1, 0).float()), head, atol=2e-3)
