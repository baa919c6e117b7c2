"""Where a chronic infarct lies: grown in the territory of an artery, or a real mask moved and warped."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.processing import resample_from_to

from scripts.common.errors import InputError
from scripts.data.placement import largest_part
from scripts.data.volumes import read_volume
from scripts.simulation.anatomy import FIELD_OF_VIEW, box, sample
from scripts.simulation.random_draws import Draw

# Lesion volume in mm3 at the 0, 25, 50, 75 and 100 % quantile of ARC's 228 masks (OpenNeuro ds004884 v1.0.2).
ARC_VOLUME_QUANTILES = (203, 33_619, 67_891, 128_314, 363_885)
# Odds, seeds in MNI mm (left hemisphere) and semi-axes in mm of regions like the territories of the arteries named.
TERRITORIES = {
    "MCA trunk": (0.36, (-38, -5, 8), (20, 34, 26)),
    "MCA superior division": (0.24, (-44, 12, 26), (18, 30, 24)),
    "MCA inferior division": (0.24, (-50, -40, 10), (18, 32, 24)),
    "lenticulostriate": (0.06, (-26, 2, 4), (10, 18, 14)),
    "PCA": (0.06, (-22, -72, 2), (16, 24, 18)),
    "ACA": (0.04, (-10, 30, 36), (10, 34, 26)),
}


def mask_files(folder: str) -> list[Path]:
    """The NIfTI files in ``folder``; InputError if there is none."""
    if not (paths := sorted(Path(folder).glob("**/*.nii*"))):
        raise InputError(f"--lesions {folder}: no NIfTI file (*.nii, *.nii.gz) in it")
    return paths


def load_mask(path: Path, resolution: float) -> torch.Tensor:
    """The mask (1, D, H, W) on the heads' grid: the share of each voxel times 255, as bytes."""
    image, data = read_volume(path)
    mask = nib.Nifti1Image((data > 0).astype(np.float32), image.affine)
    share = resample_from_to(mask, box(resolution), order=1).get_fdata(dtype=np.float32)
    return torch.from_numpy((255 * share).astype(np.uint8))[None]


def moved_lesion(mask: torch.Tensor, mni: torch.Tensor, voxel: float, draw: Draw) -> np.ndarray:
    """The real ``mask`` at ``mni`` (3, *grid), turned, scaled, shifted and warped: shares (*grid) from 0 to 1."""
    resolution, corner = FIELD_OF_VIEW[0] / mask.shape[1], torch.tensor(box(1)[1][:3, 3])
    centre = (torch.nonzero(mask[0]).float().mean(0) * resolution + corner).float().reshape(3, 1, 1, 1)
    turn = draw.normal("lesion_turn", 3, 3)
    linear = (torch.eye(3) + (turn - turn.T) / 2**0.5) * torch.tensor([draw("lesion_scale") for _ in range(3)])
    warp = torch.from_numpy(draw.noise(mni.shape[1:], draw("lesion_warp_scale") / voxel, 3)) * draw("lesion_warp")
    moved = mni - centre - draw.normal("lesion_shift", 3, 1, 1, 1)
    return sample(mask.float() / 255, torch.einsum("ij,j...->i...", linear, moved) + centre + warp, "zeros")[0]


def grown_lesion(tissue: np.ndarray, mni: np.ndarray, voxel: float, volume: float, draw: Draw) -> np.ndarray:
    """About ``volume`` mm3 of ``tissue`` (bool) in a vascular territory, in one part or with islands (bool)."""
    odds, centres, axes = zip(*TERRITORIES.values(), strict=True)
    k = draw.rng.choice(len(odds), p=odds)
    centre = np.array(centres[k]) + draw.rng.normal(0, 5, 3)
    axes = np.array(axes[k]) * draw.rng.uniform(0.7, 1.4, 3)
    cost = np.sqrt(sum(((x - c) / a) ** 2 for x, c, a in zip(mni, centre, axes, strict=True)))
    for scale in (24, 10):
        cost += draw("ragged") * draw.noise(cost.shape, scale / voxel)[0]
    allowed = np.sort(cost[tissue & (mni[0] <= -1)])
    n_voxels = max(1, round(volume / voxel**3))
    lesion = tissue & (mni[0] <= -1) & (cost <= allowed[:n_voxels].max(initial=-1))
    largest = largest_part(lesion)
    return largest if (largest != lesion).any() and not draw.chance("islands") else lesion
