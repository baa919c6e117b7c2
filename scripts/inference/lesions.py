"""Counts and measures the lesions of a mask, left and right of the middle of the head."""

import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from scripts.data.lesion_parts import TOUCHING
from scripts.data.placement import head_of


def measure(lesion: np.ndarray, affine: np.ndarray, middle: float | None) -> dict[str, float | int | None]:
    """Of ``lesion`` (D, H, W; boolean): what ``lesions.tsv`` has, and ``lesion_voxels``.

    Volumes are in mm3; left is what lies left of ``middle``, the head's ``midline``. Sides are None where that is not
    known, and ``laterality`` without a lesion, too.
    """
    voxel, x = abs(np.linalg.det(affine[:3, :3])), apply_affine(affine, np.argwhere(lesion))[:, 0]
    total, left = voxel * x.size, None if middle is None else voxel * int((x < middle).sum())
    return {
        "lesion_volume": total,
        "lesion_voxels": x.size,
        "lesions": ndimage.label(lesion, TOUCHING)[1],
        "left_volume": left,
        "right_volume": None if left is None else total - left,
        "laterality": (2 * left - total) / total if total and left is not None else None,
        "midline": middle,
    }


def midline(image: np.ndarray, affine: np.ndarray) -> float:
    """x (RAS, mm) of the middle of the head in ``image`` (D, H, W): the median over its lines of voxels, left to right.

    Each line's middle lies between its first and its last voxel, so neither the brightness nor the place of a lesion
    moves it.
    """
    head = head_of(image)
    axis = int(np.abs(affine[0, :3]).argmax())
    lines = head.any(axis)
    ends = head.argmax(axis) + head.shape[axis] - 1 - np.flip(head, axis).argmax(axis)  # of each line, summed
    middles = np.insert(np.argwhere(lines).astype(float), axis, ends[lines] / 2, axis=1)
    return float(np.median(middles @ affine[0, :3] + affine[0, 3]))
