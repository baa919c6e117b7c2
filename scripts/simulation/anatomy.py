"""Heads to simulate in: the MNI152 average or any T1- or T2-weighted head in MNI space, as maps on one grid."""

from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.data.placement import largest_part
from scripts.data.volumes import read_volume

# Centre (MNI mm) and size (mm) of the box that is simulated and scanned.
CENTRE, FIELD_OF_VIEW = (0, -18, 6), (192, 240, 192)


def box(resolution: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the RAS grid of ``resolution`` mm over the field of view."""
    corner = np.array(CENTRE) - np.array(FIELD_OF_VIEW) / 2
    return tuple(int(mm // resolution) for mm in FIELD_OF_VIEW), nib.affines.from_matvec(np.eye(3) * resolution, corner)


def sample(maps: torch.Tensor, mni: torch.Tensor, padding: str = "border") -> np.ndarray:
    """Linear interpolation of ``maps`` (C, D, H, W), which cover the field of view, at ``mni`` (3, *grid) in mm."""
    size = torch.tensor(maps.shape[1:])
    share = (mni.movedim(0, -1) - torch.tensor(CENTRE)) / torch.tensor(FIELD_OF_VIEW) + 0.5
    grid = (2 * share * size / (size - 1) - 1).flip(-1)[None]
    return torch.nn.functional.grid_sample(maps[None], grid, padding_mode=padding, align_corners=True)[0].numpy()


@lru_cache(maxsize=4)
def load_head(path: str, resolution: int) -> torch.Tensor:
    """The average head "MNI152", or the one in MNI space at ``path``, on a grid of ``resolution`` mm.

    A name that ends in ``T2w`` (BIDS) says that the head is T2-weighted, any other that it is T1-weighted.

    Returns:
        (7, D, H, W): fractions of CSF, grey and white matter; brightness outside the brain, 0 to 1; mm below the
        brain's surface, negative outside; mm to the nearest ventricle; the scan itself if it is T2-weighted, with CSF
        at 1, else 0.

    Raises:
        InputError: ``path`` cannot be read, or has no brain there.
    """
    average, is_t2w = path == "MNI152", Path(path).name.split(".")[0].endswith("T2w")
    template, *priors, inside, depth = _mni152(resolution)
    scan = template if average else _on_grid(read_volume(path)[0], resolution)
    if (scan[inside] > 0).mean() < 0.5:
        raise InputError(f"{path}: mostly 0 where the brain is in MNI space; register the head to it")
    if not average and np.percentile(scan[depth < -8], 99) == 0:  # without its skull, so that its brain is known
        inside = ndimage.binary_fill_holes(largest_part(scan > 0))
        depth = _depth(inside, resolution)
    fractions = _segment(scan, np.stack(priors) * inside, inside)
    outside = np.clip(scan / np.percentile(scan[inside], 99), 0, 1)
    if average:  # it ends at the brain: marrow and scalp as shells
        outside = np.select([depth > -5, depth > -8, depth > -10, depth > -16], [0.05, 0.4, 0.1, 0.8], 0)
    deep = (fractions[0] > 0.5) & (depth > 18)  # ventricles, and the insula's cisterns, which widen less
    if is_t2w:
        deep &= priors[0] > 0.2  # spots in white matter are as bright
    x = nib.affines.apply_affine(box(resolution)[1], np.argwhere(deep))[:, 0]
    middle = np.zeros_like(deep)
    middle[deep] = np.abs(x) < 27
    to_middle, to_deep = (ndimage.distance_transform_edt(~part, sampling=resolution) for part in (middle, deep))
    own = scan / max(np.average(scan, weights=fractions[0] ** 4), 1e-6) if is_t2w else np.zeros_like(scan)
    maps = np.stack([*fractions, outside, depth, np.minimum(to_middle, to_deep + 4), own])
    return torch.from_numpy(maps.astype(np.float32))


@lru_cache(maxsize=1)
def _mni152(resolution: int) -> tuple[np.ndarray, ...]:
    """The average head: T1w, shares of CSF, grey and white matter, the brain's mask and ``depth`` in it."""
    from nilearn import datasets  # 2 s; a run whose cohort exists does not need it

    load = datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template
    template, grey, white = (_on_grid(image(resolution=resolution), resolution) for image in load)
    inside = _on_grid(datasets.load_mni152_brain_mask(resolution=resolution), resolution) > 0.5
    return template, np.clip(1 - grey - white, 0, 1), grey, white, inside, _depth(inside, resolution)


def _on_grid(image: nib.Nifti1Image, resolution: int) -> np.ndarray:
    return np.clip(resample_from_to(image, box(resolution), order=1).get_fdata(dtype=np.float32), 0, None)


def _depth(inside: np.ndarray, resolution: int) -> np.ndarray:
    """How many mm below the surface of ``inside``; negative outside."""
    below, above = (ndimage.distance_transform_edt(part, sampling=resolution) for part in (inside, ~inside))
    return below - above


def _segment(scan: np.ndarray, priors: np.ndarray, inside: np.ndarray, n_iterations: int = 20) -> np.ndarray:
    """Fractions of CSF, grey and white matter: Gaussian mixture with spatial priors (Ashburner & Friston 2005)."""
    prior = np.clip(priors[:, inside], 0.01, None)
    prior /= prior.sum(0)
    x, posterior = scan[inside], prior
    for _ in range(n_iterations):
        weight = posterior.sum(1)
        mean = (posterior @ x / weight)[:, None]
        variance = ((posterior * (x - mean) ** 2).sum(1) / weight)[:, None]
        posterior = prior * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(variance)
        total = posterior.sum(0)
        posterior = np.where(total > 0, posterior / np.where(total > 0, total, 1), prior)  # no tissue is like it
    fractions = priors.copy()
    fractions[:, inside] = posterior
    return fractions
