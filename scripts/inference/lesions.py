"""MONAI neither counts nor measures lesions, and its RemoveSmallObjects wants scikit-image: this does it with SciPy."""

import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a face, an edge or a corner are one lesion


def measure(mask: MetaTensor, image: MetaTensor) -> dict[str, float | int]:
    """Volume, number and side of the lesions in ``mask``, in the units of the affine (mm).

    Args:
        mask: (1, D, H, W), greater than 0 is lesion; its affine leads to RAS coordinates.
        image: (1, D, H, W), the scan on the same grid.

    Returns:
        ``lesion_volume`` and its parts ``left_volume`` and ``right_volume`` in mm3, ``lesion_voxels``, ``lesions``
        (the number of connected ones) and ``laterality``, (left - right) / (left + right), None without a lesion.
        Left is what lies left of the middle of the head, see ``midline``.
    """
    lesion, affine = mask[0].cpu().numpy() > 0, mask.affine.double().cpu().numpy()
    voxel = abs(np.linalg.det(affine[:3, :3]))
    middle = midline(image[0].cpu().numpy(), affine)
    left = voxel * int((np.argwhere(lesion) @ affine[0, :3] + affine[0, 3] < middle).sum())
    total = voxel * int(lesion.sum())
    return {
        "lesion_volume": total,
        "lesion_voxels": int(lesion.sum()),
        "lesions": ndimage.label(lesion, TOUCHING)[1],
        "left_volume": left,
        "right_volume": total - left,
        "laterality": (2 * left - total) / total if total else None,
    }


def midline(image: np.ndarray, affine: np.ndarray) -> float:
    """x (RAS, mm) of the middle of the head in ``image`` (D, H, W): the median over its lines of voxels, left to right.

    The head is the largest connected part above a tenth of the robust range, as in FSL's BET. Each line's middle lies
    between its first and its last voxel, so neither the brightness nor the place of a lesion moves it.
    """
    low, high = np.percentile(image, (2, 98))
    parts, _ = ndimage.label(image >= low + 0.1 * (high - low))
    head = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    axis = int(np.abs(affine[0, :3]).argmax())
    lines = head.any(axis)
    first, last = (np.argmax(side, axis)[lines] for side in (head, np.flip(head, axis)))
    middles = np.insert(np.argwhere(lines).astype(float), axis, (first + head.shape[axis] - 1 - last) / 2, axis=1)
    return float(np.median(middles @ affine[0, :3] + affine[0, 3]))


def remove_small_lesions(mask: MetaTensor, min_volume: float) -> MetaTensor:
    """``mask`` (1, D, H, W) without its connected lesions of less than ``min_volume`` mm3, on the mask's device."""
    parts, _ = ndimage.label(mask[0].cpu().numpy() > 0, TOUCHING)
    voxel = float(torch.linalg.det(mask.affine[:3, :3].double()).abs())
    keep = np.bincount(parts.ravel()) * voxel >= min_volume
    keep[0] = False
    return mask * torch.from_numpy(keep[parts])[None].to(mask.device, mask.dtype)
