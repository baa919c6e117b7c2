"""The MNI152 head, and a person's T2w scan, on a coarse grid."""

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.simulation.anatomy import Head, box, load_head


@pytest.fixture(scope="session")
def head() -> Head:
    return load_head("MNI152", 4)


@pytest.fixture(scope="session")
def head_maps(head: Head) -> np.ndarray:
    """(7, 48, 60, 48): the maps as numbers."""
    return head.at(places())


def places() -> torch.Tensor:
    """MNI coordinates (3, 48, 60, 48) of the voxels at 4 mm."""
    shape, affine = box(4)
    return (
        torch.from_numpy(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))).movedim(-1, 0).float()
    )


@pytest.fixture(scope="session")
def t2w_volume(head_maps: np.ndarray) -> np.ndarray:
    """(48, 60, 48): CSF 500, grey matter 300, white matter 200, a scalp, and dark vessels in the left frontal lobe."""
    csf, grey, white, outside, depth, *_ = head_maps
    volume = 500 * csf + 300 * grey + 200 * white
    volume = np.where(depth > 0, volume, 400 * (outside > 0.5))
    volume[17:19, 40:42, 30:32] = 0
    return volume.astype(np.float32)


@pytest.fixture(scope="session")
def t2w_head(t2w_volume: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Head:
    path = tmp_path_factory.mktemp("head") / "sub-1_T2w.nii.gz"
    nib.save(nib.Nifti1Image(t2w_volume, box(4)[1]), path)
    return load_head(str(path), 4)
