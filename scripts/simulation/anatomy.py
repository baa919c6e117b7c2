"""Heads to simulate in: tissue fractions of MNI152 or of any T1-weighted head in MNI space, and maps of distance."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from scripts.data.volumes import read_volume

# Centre (MNI mm) and size (mm) of the box that is simulated and scanned.
CENTRE, FIELD_OF_VIEW = (0, -18, 6), (192, 240, 192)
CISTERN_DEPTH = 18  # mm below the brain's surface, from where CSF counts as ventricle


@dataclass
class Head:
    """Maps (6, D, H, W) of a head in MNI space on an isotropic grid of ``resolution`` mm over the field of view.

    ``csf``, ``grey`` and ``white`` are fractions, ``outside`` the brightness of what is not brain (0 to 1), ``depth``
    the mm below the brain's surface (negative outside), ``to_ventricle`` the mm to the nearest ventricle.
    """

    maps: torch.Tensor
    resolution: float

    def at(self, mni: torch.Tensor, channels: slice = slice(None)) -> np.ndarray:
        """The maps (C, *grid) at the MNI coordinates ``mni`` (3, *grid) in mm; at the box's border beyond it."""
        return sample(self.maps[channels], mni, self.resolution)


def sample(maps: torch.Tensor, mni: torch.Tensor, resolution: float, padding: str = "border") -> np.ndarray:
    """Linear interpolation of ``maps`` (C, D, H, W), which cover the field of view, at ``mni`` (3, *grid) in mm."""
    size = torch.tensor(maps.shape[1:])
    index = (mni.movedim(0, -1) - torch.tensor(CENTRE) + torch.tensor(FIELD_OF_VIEW) / 2) / resolution
    grid = (2 * index / (size - 1) - 1).flip(-1)[None]
    return torch.nn.functional.grid_sample(maps[None], grid, padding_mode=padding, align_corners=True)[0].numpy()


def source_grid(resolution: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the grid that covers the field of view."""
    affine = np.diag([resolution] * 3 + [1.0])
    affine[:3, 3] = np.array(CENTRE) - np.array(FIELD_OF_VIEW) / 2
    return tuple(int(mm // resolution) for mm in FIELD_OF_VIEW), affine


def load_head(path: str, resolution: int) -> Head:
    """The average head "MNI152", or the T1-weighted head in MNI space at ``path``.

    Raises:
        InputError: ``path`` cannot be read.
    """
    from nilearn import datasets  # 2 s; a run whose cohort exists does not need it

    grid = source_grid(resolution)

    average = path == "MNI152"

    def on_grid(image: nib.Nifti1Image) -> np.ndarray:
        return np.clip(resample_from_to(image, grid, order=1).get_fdata(dtype=np.float32), 0, None)

    t1 = on_grid(datasets.load_mni152_template(resolution=resolution) if average else read_volume(path)[0])
    grey = on_grid(datasets.load_mni152_gm_template(resolution=resolution))
    white = on_grid(datasets.load_mni152_wm_template(resolution=resolution))
    inside = on_grid(datasets.load_mni152_brain_mask(resolution=resolution)) > 0.5
    priors = np.stack([np.clip(1 - grey - white, 0, 1), grey, white]) * inside
    fractions = _segment(t1, priors, inside)
    depth = ndimage.distance_transform_edt(inside, sampling=resolution)
    depth -= ndimage.distance_transform_edt(~inside, sampling=resolution)
    deep = (fractions[0] > 0.5) & (depth > CISTERN_DEPTH)
    middle = np.abs(grid[1][0, 3] + resolution * np.arange(len(deep))) < 27  # the insula's cisterns widen less
    to_ventricle = np.minimum(
        ndimage.distance_transform_edt(~(deep & middle[:, None, None]), sampling=resolution),
        ndimage.distance_transform_edt(~deep, sampling=resolution) + 4,
    )
    outside = np.clip(t1 / np.percentile(t1[inside], 99), 0, 1)
    if average:  # it ends at the brain: marrow and scalp as shells
        outside = np.select([depth > -5, depth > -8, depth > -10, depth > -16], [0.05, 0.4, 0.1, 0.8], 0)
    maps = np.stack([*fractions, outside, depth, to_ventricle]).astype(np.float32)
    return Head(torch.from_numpy(maps), resolution)


def _segment(t1: np.ndarray, priors: np.ndarray, inside: np.ndarray, n_iterations: int = 20) -> np.ndarray:
    """Fractions of CSF, grey and white matter: Gaussian mixture with spatial priors (Ashburner & Friston 2005)."""
    prior = np.clip(priors[:, inside], 0.01, None)
    prior /= prior.sum(0)
    x, posterior = t1[inside], prior
    for _ in range(n_iterations):
        weight = posterior.sum(1)
        mean = (posterior @ x / weight)[:, None]
        variance = ((posterior * (x - mean) ** 2).sum(1) / weight)[:, None]
        posterior = prior * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance)
        posterior /= posterior.sum(0)
    fractions = priors.copy()
    fractions[:, inside] = posterior
    return fractions
