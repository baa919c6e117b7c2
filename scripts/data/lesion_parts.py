"""Remove the connected parts of a mask that are too small."""

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a face, an edge or a corner are one lesion


def remove_small_lesions(mask: MetaTensor, min_volume: float) -> MetaTensor:
    """``mask`` (1, D, H, W) without its connected lesions of less than ``min_volume`` mm3, on the mask's device."""
    parts, _ = ndimage.label(mask[0].cpu().numpy() > 0, TOUCHING)
    voxel = float(torch.linalg.det(mask.affine[:3, :3].double()).abs())
    keep = np.bincount(parts.ravel()) * voxel >= min_volume
    return mask * torch.from_numpy(keep[parts])[None].to(mask.device, mask.dtype)
