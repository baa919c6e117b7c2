"""Counts and measures the lesions of a mask, left and right of the middle of the head."""

import numpy as np
from monai.data import MetaTensor
from nibabel.affines import apply_affine
from scipy import ndimage

from scripts.data.lesion_parts import TOUCHING
from scripts.data.placement import head_of


def measure(mask: MetaTensor, image: MetaTensor) -> dict[str, float | int]:
    """Of ``mask`` (1, D, H, W) over a scan, ``image``, on one grid: what ``lesions.tsv`` has, and ``lesion_voxels``.

    Volumes are in mm3; left is what lies left of ``midline``; ``laterality`` is None without a lesion, and it and both
    sides' volumes are None where the scan's header does not tell left from right (``sides_known`` of its ``meta``).
    """
    lesion, affine = mask[0].cpu().numpy() > 0, mask.affine.double().cpu().numpy()
    voxel, x = abs(np.linalg.det(affine[:3, :3])), apply_affine(affine, np.argwhere(lesion))[:, 0]
    total, left, known = voxel * x.size, 0.0, image.meta.get("sides_known", True)
    if known:
        left = voxel * int((x < midline(image[0].cpu().numpy(), affine)).sum())
    return {
        "lesion_volume": total,
        "lesion_voxels": x.size,
        "lesions": ndimage.label(lesion, TOUCHING)[1],
        "left_volume": left if known else None,
        "right_volume": total - left if known else None,
        "laterality": (2 * left - total) / total if known and total else None,
    }


def midline(image: np.ndarray, affine: np.ndarray) -> float:
    """x (RAS, mm) of the middle of the head in ``image`` (D, H, W): the median over its lines of voxels, left to right.

    Each line's middle lies between its first and its last voxel, so neither the brightness nor the place of a lesion
    moves it.
    """
    head = head_of(image)
    i, j, k = np.indices(head.shape, sparse=True)
    x, axis = affine[0, 0] * i + affine[0, 1] * j + affine[0, 2] * k + affine[0, 3], np.abs(affine[0, :3]).argmax()
    lines = head.any(axis)
    first, last = x.min(axis, where=head, initial=np.inf), x.max(axis, where=head, initial=-np.inf)
    return float(np.median(first[lines] + last[lines]) / 2)
