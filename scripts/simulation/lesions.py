"""Where chronic infarcts lie: grown in the territory of an artery, real masks moved and warped, and lacunes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.data.placement import extent, largest_part
from scripts.data.reader import read_volume
from scripts.data.volume_files import volumes_below
from scripts.data.volumes import lesion_of
from scripts.simulation.anatomy import sample
from scripts.simulation.random_draws import Draw, smooth

# Lesion volume in mm3 at the 0, 25, 50, 75 and 100 % quantile of ARC's 228 masks (OpenNeuro ds004884 v1.0.2).
ARC_VOLUME_QUANTILES = (203, 33_619, 67_891, 128_314, 363_885)
# Limits in mm3 of the bins that a lesion's volume is drawn from; each bin's odds are ``volume_odds`` of ranges.json.
VOLUME_BINS = (100, 1_000, 5_000, 20_000, 60_000, 300_000)
# Odds, seeds in MNI mm (left hemisphere) and semi-axes in mm of regions like the territories of the arteries named, and
# the largest lesion in mm3 that one holds.
TERRITORIES = {
    "MCA trunk": (0.3, (-38, -5, 8), (20, 34, 26), np.inf),
    "MCA superior division": (0.2, (-44, 12, 26), (18, 30, 24), np.inf),
    "MCA inferior division": (0.2, (-50, -40, 10), (18, 32, 24), np.inf),
    "lenticulostriate": (0.06, (-26, 2, 4), (10, 18, 14), 40_000),
    "PCA": (0.08, (-22, -72, 2), (16, 24, 18), np.inf),
    "ACA": (0.04, (-10, 30, 36), (10, 34, 26), np.inf),
    "PICA": (0.04, (-22, -66, -46), (20, 18, 10), 40_000),
    "AICA and SCA": (0.03, (-26, -54, -30), (20, 16, 8), 40_000),
    "thalamus": (0.03, (-12, -18, 7), (7, 10, 8), 5_000),
    "brain stem": (0.02, (-4, -28, -32), (5, 6, 10), 3_000),
}
# Where lacunes lie (left, mm): putamen, caudate, corona radiata, centrum semiovale, thalamus, pons, dentate nucleus.
LACUNES = ((-26, 2, 4), (-15, 10, 10), (-25, -14, 24), (-24, -24, 36), (-12, -18, 7), (-5, -28, -32), (-16, -58, -34))
GRID, MARGIN = 1.5, 5.0  # of masks in memory: voxel and what is kept around one, in mm


class Mask(NamedTuple):
    """A lesion's mask as its bounding box in MNI space.

    ``share`` (D, H, W; bytes; above 127 inside) is on a RAS grid of ``GRID`` mm whose first voxel lies half the size of
    the box from ``centre`` (mm). ``middle`` (mm) is the centre of mass, ``volume`` is in mm3.
    """

    share: torch.Tensor
    centre: np.ndarray
    middle: np.ndarray
    volume: float


def mask_files(folder: str) -> list[Path]:
    """The NIfTI files in ``folder``; InputError if there is none."""
    if not (paths := volumes_below(Path(folder))):
        raise InputError(f"--lesions {folder}: no NIfTI file (*.nii, *.nii.gz) in it")
    return paths


def load_masks(folders: Sequence[str]) -> list[Mask]:
    """The masks in all of ``folders``."""
    paths = [path for folder in folders for path in mask_files(folder)]
    return [load_mask(path) for path in tqdm(paths, "Reading masks", unit="mask", disable=not paths)]


def load_mask(path: Path, width: float = 1.5) -> Mask:
    """The mask at ``path``, its steps between slices smoothed by ``width`` mm without a change of its volume."""
    image = read_volume(path)
    inside = lesion_of(image)
    if not inside.any():
        raise InputError(f"{path}: no lesion in it")
    voxel = nib.affines.voxel_sizes(image.affine)
    room, ends = np.ceil(MARGIN / voxel).astype(int), extent(inside)
    cut = np.pad(inside[tuple(slice(*part) for part in ends)], [(n, n) for n in room])
    to_mm = image.affine @ nib.affines.from_matvec(np.eye(3), [first for first, _ in ends] - room)
    blurred, count = smooth(cut, width, voxel), int(np.count_nonzero(cut))
    some = blurred[blurred > 0.05 * blurred.max()]
    limit = np.partition(some, -min(count, some.size))[-min(count, some.size)]  # so many voxels are above it
    share, centre = _on_small_grid(np.clip(blurred / limit - 0.5, 0, 1), to_mm)
    middle = nib.affines.apply_affine(to_mm, np.argwhere(cut).mean(0))
    return Mask((255 * share).round().byte(), centre, middle, count * float(np.prod(voxel)))


def _on_small_grid(share: np.ndarray, to_mm: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """``share`` (D, H, W) resampled to a RAS grid of ``GRID`` mm, and that grid's centre in mm."""
    last = np.array(share.shape) - 1
    corners = nib.affines.apply_affine(to_mm, np.indices((2, 2, 2)).reshape(3, 8).T * last)
    low, high = corners.min(0), corners.max(0)
    shape = np.ceil((high - low) / GRID).astype(int) + 1
    to_voxel = np.linalg.inv(to_mm) @ nib.affines.from_matvec(np.eye(3) * GRID, low)
    places = nib.affines.apply_affine(to_voxel, np.moveaxis(np.indices(shape), 0, -1)) * 2 / last - 1
    grid = torch.from_numpy(places[..., ::-1].astype(np.float32).copy())[None]
    share = torch.nn.functional.grid_sample(torch.from_numpy(share)[None, None], grid, align_corners=True)[0, 0]
    return share, low + GRID * shape / 2


def drawn_lesion(
    masks: list[Mask], tissue: np.ndarray, mni: torch.Tensor, voxel: float, draw: Draw, volume: float | None = None
) -> np.ndarray:
    """Shares (*grid), above 0.5 inside, of a real or a grown lesion of ``volume`` mm3 or of a drawn one."""
    bins = np.digitize([mask.volume for mask in masks], VOLUME_BINS[1:-1])
    real = draw.chance("real_mask") and len(masks) > 0
    odds = np.array(draw.ranges["volume_odds"], float) * (np.isin(range(5), bins) if real else 1)
    k = draw.rng.choice(5, p=odds / odds.sum()) if odds.any() else bins[0]
    side = -1 if draw.chance("lesion_mirror") else 1
    mni = mni * torch.tensor([side, 1, 1]).reshape(3, 1, 1, 1)
    if real:
        share = moved_lesion(masks[draw.rng.choice(np.flatnonzero(bins == k))], mni, voxel, draw)
    else:
        drawn = np.exp(draw.rng.uniform(*np.log(VOLUME_BINS[k : k + 2])))
        share = smooth(grown_lesion(tissue > 0.5, mni.numpy(), voxel, volume or drawn, draw), 2, voxel)
    return share


def lacune(mni: torch.Tensor, voxel: float, draw: Draw) -> np.ndarray:
    """Shares (*grid) of a small ellipsoid in deep grey or white matter, thalamus, pons or cerebellum of either side."""
    centre = torch.tensor(LACUNES[draw.rng.integers(len(LACUNES))]) + draw.normal("lacune_place", 3)
    centre[0] *= draw.rng.choice((-1, 1))
    radii = torch.tensor(draw("lacune") / 2 * draw.rng.uniform(0.7, 1.3, 3)).float().reshape(3, 1, 1, 1)
    share, here = np.zeros(mni.shape[1:], np.float32), around(mni, centre, 12)
    distance = ((mni[(slice(None), *here)] - centre.reshape(3, 1, 1, 1)) / radii).norm(dim=0)
    share[here] = ((1 - distance) * radii.mean() / voxel + 0.5).clamp(0, 1).numpy()
    return share


def around(mni: torch.Tensor, centre: Sequence[float], reach: float | Sequence[float]) -> tuple[slice, ...]:
    """The part of the grid of ``mni`` (3, *grid) that is within ``reach`` mm, along each axis, of ``centre``."""
    step = 4
    coarse = mni[:, ::step, ::step, ::step].movedim(0, -1)
    near = (coarse - torch.as_tensor(centre).float()).abs() < torch.as_tensor(reach).float()
    found = torch.nonzero(near.all(-1))
    if not len(found):
        return (slice(0, 0),) * 3
    ends = zip(found.amin(0).tolist(), found.amax(0).tolist(), strict=True)
    return tuple(slice(max(0, step * (a - 1)), step * (b + 2)) for a, b in ends)


def moved_lesion(mask: Mask, mni: torch.Tensor, voxel: float, draw: Draw) -> np.ndarray:
    """The real ``mask`` at ``mni`` (3, *grid), turned, scaled, shifted and warped: shares (*grid) from 0 to 1."""
    middle = torch.from_numpy(mask.middle).float()
    turn = draw.normal("lesion_turn", 3, 3)
    linear = (torch.eye(3) + (turn - turn.T) / 2**0.5) * torch.tensor([draw("lesion_scale") for _ in range(3)])
    shift, warp, scale = draw.normal("lesion_shift", 3), draw("lesion_warp"), draw("lesion_warp_scale") / voxel
    size = torch.tensor(mask.share.shape) * GRID
    share = np.zeros(mni.shape[1:], np.float32)
    centre = torch.linalg.solve(linear, torch.from_numpy(mask.centre).float() - middle) + middle + shift
    here = around(mni, centre, torch.linalg.inv(linear).abs() @ (size / 2 + 3 * warp) + 4 * voxel)
    moved = mni[(slice(None), *here)] - (middle + shift).reshape(3, 1, 1, 1)
    moved = torch.einsum("ij,j...->i...", linear, moved) + middle.reshape(3, 1, 1, 1)
    if moved.numel():
        moved += warp * torch.from_numpy(draw.noise(moved.shape[1:], scale, 3))
        share[here] = sample(mask.share[None].float() / 255, moved, "zeros", mask.centre, size)[0]
    return share


def grown_lesion(tissue: np.ndarray, mni: np.ndarray, voxel: float, volume: float, draw: Draw) -> np.ndarray:
    """About ``volume`` mm3 of ``tissue`` (bool) in a vascular territory, in one part or with islands (bool)."""
    odds, centres, axes, largest = (np.array(column) for column in zip(*TERRITORIES.values(), strict=True))
    odds = odds * (volume <= largest)
    k = draw.rng.choice(len(odds), p=odds / odds.sum())
    centre = centres[k] + draw.rng.normal(0, 5, 3) * np.minimum(1, axes[k] / 10)
    axes = axes[k] * draw.rng.uniform(0.7, 1.4, 3)
    cost = sum(((x - np.float32(c)) / np.float32(a)) ** 2 for x, c, a in zip(mni, centre, axes, strict=True)) ** 0.5
    for scale in (24, 10):
        cost += np.float32(draw("ragged")) * draw.noise(cost.shape, scale / voxel)[0]
    tissue = tissue & (mni[0] <= -1)
    allowed = cost[tissue]
    n_voxels = min(max(1, round(volume / voxel**3)), allowed.size)
    lesion = tissue & (cost <= (np.partition(allowed, n_voxels - 1)[n_voxels - 1] if n_voxels else -1))
    part = largest_part(lesion)
    return part if (part != lesion).any() and not draw.chance("islands") else lesion
