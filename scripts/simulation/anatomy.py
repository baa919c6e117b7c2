"""Heads to simulate in: the MNI152 average, or any T1w or T2w scan or label map in MNI space, as maps on one grid."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.data.placement import largest_part
from scripts.data.reader import read_volume
from scripts.simulation.label_map import AIR, STRUCTURES, region_codes, shares_of

# Centre (MNI mm) and size (mm) of the box that is simulated and scanned.
CENTRE, FIELD_OF_VIEW = (0, -18, 6), (192, 240, 192)
# The maps of a head are kept as bytes: what a byte of 0 stands for and a step of 1, map by map.
FIRST = torch.tensor([0, 0, 0, 0, -20, 0, 0]).float().reshape(-1, 1, 1, 1)
STEP = torch.tensor([1 / 255, 1 / 255, 1 / 255, 1 / 255, 1 / 3, 1 / 4, 1 / 100]).reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class Head:
    """A head's ``maps`` (7, D, H, W; bytes) over the field of view.

    They are: fractions of CSF, grey and white matter; brightness outside the brain, 0 to 1; mm below the brain's
    surface, negative outside; mm to the nearest ventricle; the scan itself if it is T2-weighted, with CSF at 1 (without
    it there are six maps). Where the head is ``labelled`` the fourth holds ``region_codes`` instead of brightness.
    """

    maps: torch.Tensor
    labelled: bool = False

    @classmethod
    def of(cls, maps: np.ndarray, labelled: bool = False) -> "Head":
        """The head of these maps as numbers."""
        maps = torch.from_numpy(maps[: 7 if maps[6].any() else 6].astype(np.float32))
        return cls(((maps - FIRST[: len(maps)]) / STEP[: len(maps)]).round_().clamp_(0, 255).byte(), labelled)

    def at(self, mni: torch.Tensor, which: tuple[int, ...] = tuple(range(7))) -> np.ndarray:
        """The maps ``which`` as numbers at ``mni`` (3, *grid) in mm; 0 for a map that is not there."""
        there = [i for i in which if i < len(self.maps)]
        numbers = sample(self.maps[there].float(), mni) * STEP[there].numpy() + FIRST[there].numpy()
        return np.concatenate([numbers, np.zeros((len(which) - len(there), *mni.shape[1:]), np.float32)])

    def by_code(self, table: np.ndarray, mni: torch.Tensor) -> np.ndarray:
        """What ``table`` has for the bytes of the fourth map, interpolated at ``mni`` (3, *grid)."""
        return sample(torch.from_numpy(table.astype(np.float32).take(self.maps[3].numpy()))[None], mni)[0]


def box(resolution: float) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of the RAS grid of ``resolution`` mm over the field of view."""
    corner = np.array(CENTRE) - np.array(FIELD_OF_VIEW) / 2
    return tuple(int(mm // resolution) for mm in FIELD_OF_VIEW), nib.affines.from_matvec(np.eye(3) * resolution, corner)


def resolution_for(voxel: float) -> float:
    """The resolution in mm of heads for scans of ``voxel`` mm: about three quarters of it, a divisor of the box."""
    return max(mm for mm in (1, 1.5, 2, 3, 4, 6) if mm <= max(1, 0.76 * voxel))


def sample(
    maps: torch.Tensor,
    mni: torch.Tensor,
    padding: str = "border",
    centre: tuple[float, ...] = CENTRE,
    size: tuple[float, ...] = FIELD_OF_VIEW,
) -> np.ndarray:
    """Linear interpolation of ``maps`` (C, D, H, W), which cover ``size`` mm around ``centre``, at ``mni`` in mm."""
    shape = torch.tensor(maps.shape[1:])
    scale = 2 * shape / (shape - 1) / torch.as_tensor(size)  # voxel 0 is at -1, the last at 1
    offset = shape / (shape - 1) - 1 - scale * torch.as_tensor(centre)
    scale, offset = (part.float().reshape(3, 1, 1, 1) for part in (scale, offset))
    grid = (mni * scale + offset).flip(0).movedim(0, -1)[None]
    return torch.nn.functional.grid_sample(maps[None], grid, padding_mode=padding, align_corners=True)[0].numpy()


@lru_cache(maxsize=64)
def load_head(path: str, resolution: float) -> Head:
    """The average head "MNI152", or the one in MNI space at ``path``, on a grid of ``resolution`` mm.

    A name that ends in ``dseg`` (BIDS) says that the file is a map of FreeSurfer's labels, one that ends in ``T2w``
    that it is a T2-weighted scan, any other that it is a T1-weighted one.

    Raises:
        InputError: ``path`` cannot be read, or has no brain there.
    """
    name = Path(path).name.split(".")[0]
    return _labelled_head(path, resolution) if name.endswith("dseg") else _scanned_head(path, resolution)


def _labelled_head(path: str, resolution: float) -> Head:
    volume, grid = read_volume(path), box(resolution)
    image = nib.Nifti1Image(np.rint(volume.data).clip(0, 2999).astype(np.int16), volume.affine)
    fine = np.asarray(resample_from_to(image, box(1), order=0).dataobj).astype(np.int16)
    nearest = (
        np.minimum(np.rint(np.arange(n) * resolution).astype(int), m - 1)
        for n, m in zip(grid[0], fine.shape, strict=True)
    )
    labels = fine[np.ix_(*nearest)]
    codes = region_codes(labels, resolution)
    inside = codes < AIR
    if inside[tuple(slice(n // 3, n - n // 3) for n in inside.shape)].mean() < 0.5:
        raise InputError(f"{path}: no brain's labels where the brain is in MNI space; register the head to it")
    ventricles = np.isin(labels, (4, 5, 14, 43, 44, *STRUCTURES["choroid plexus"][0]))
    inside = ndimage.binary_fill_holes(largest_part(inside))
    hull = ndimage.binary_erosion(inside, iterations=max(1, round(2 / resolution)))  # without dura
    depth = _depth(hull | (inside & (labels != 24)), resolution)
    to_ventricle = ndimage.distance_transform_edt(~ventricles, sampling=resolution)
    maps = [*shares_of(fine, grid, resolution), codes / np.float32(255), depth, to_ventricle, 0 * depth]
    return Head.of(np.stack(maps), labelled=True)


def _scanned_head(path: str, resolution: float) -> Head:
    average, is_t2w = path == "MNI152", Path(path).name.split(".")[0].endswith("T2w")
    template, *priors, inside, depth = _mni152(resolution)
    scan = template
    if not average:
        volume = read_volume(path)
        scan = _on_grid(nib.Nifti1Image(volume.data, volume.affine), resolution)
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
    return Head.of(np.stack([*fractions, outside, depth, np.minimum(to_middle, to_deep + 4), own]))


@lru_cache(maxsize=1)
def _mni152(resolution: float) -> tuple[np.ndarray, ...]:
    """The average head: T1w, shares of CSF, grey and white matter, the brain's mask and ``depth`` in it."""
    from nilearn import datasets  # 2 s; a run whose cohort exists does not need it

    load = datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template
    whole = int(resolution)  # nilearn knows no others
    template, grey, white = (_on_grid(image(resolution=whole), resolution) for image in load)
    inside = _on_grid(datasets.load_mni152_brain_mask(resolution=whole), resolution) > 0.5
    return template, np.clip(1 - grey - white, 0, 1), grey, white, inside, _depth(inside, resolution)


def _on_grid(image: nib.Nifti1Image, resolution: float) -> np.ndarray:
    return np.clip(resample_from_to(image, box(resolution), order=1).get_fdata(dtype=np.float32), 0, None)


def _depth(inside: np.ndarray, resolution: float) -> np.ndarray:
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
