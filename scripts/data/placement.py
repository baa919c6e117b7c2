"""Say which voxels of a scan the grid takes: those of the head, wherever it lies."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d

from scripts.data.volumes import Volume, in_ras

COARSE = 64  # voxels along an axis are enough to find a head
MARGIN = 6  # voxels of air around it
STEP = 16  # sides are multiples of it: the largest dilation is then interleaved in full


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest part of ``mask`` (D, H, W; bool) that is connected by faces; nothing of an empty one."""
    parts, _ = ndimage.label(mask)
    return parts == 1 + np.bincount(parts.ravel(), minlength=2)[1:].argmax()


def extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """The first voxel of ``mask`` (D, H, W; bool) and the one after its last, along each axis; 0 and 1 if empty."""
    found = [np.flatnonzero(mask.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    return [(int(places[0]), int(places[-1]) + 1) if places.size else (0, 1) for places in found]


def head_of(image: np.ndarray) -> np.ndarray:
    """The largest connected part of ``image`` (D, H, W) above a tenth of the robust range, as in FSL's BET."""
    low, high = np.percentile(image, (2, 98))
    return largest_part(image >= low + 0.1 * (high - low))


def head_extent(image: torch.Tensor) -> list[tuple[int, int]]:
    """The first voxel of the head in ``image`` (D, H, W) and the one after its last, along each axis."""
    blocks = [max(1, side // COARSE) for side in image.shape]
    head = np.nonzero(head_of(avg_pool3d(image[None].float(), blocks, ceil_mode=True)[0].cpu().numpy()))
    ends = [(int(found.min()), int(found.max()) + 1) for found in head]
    each = zip(ends, blocks, image.shape, strict=True)
    return [(first * block, min(last * block, side)) for (first, last), block, side in each]


def grid_starts(
    sides: Sequence[float], spatial_size: Sequence[float], extent: Sequence[tuple[float, float]], orientation: str
) -> list[float]:
    """Where along each axis of a scan with these sides a grid starts, all in voxels of the grid.

    That is where MONAI pads and crops, about the centre, if the head's ``extent`` is then in the grid. Else it is about
    the head's centre; and where what is connected to the head, such as a neck, is too long for the grid, ``MARGIN``
    above its top. An extent of the whole scan tells nothing: air that is as bright as a head.
    """
    found = any(first > 0 or last < side for (first, last), side in zip(extent, sides, strict=True))
    starts = []
    for side, size, (first, last), towards in zip(sides, spatial_size, extent, orientation, strict=True):
        start = side // 2 - size // 2 if side > size else -((size - side) // 2)
        if found and side > size and not (start <= first and last <= start + size):
            start = (first + last - size) // 2
            if last - first > size and towards in "SI":
                start = last + MARGIN - size if towards == "S" else first - MARGIN
            start = min(max(0, start), side - size)
        starts.append(start)
    return starts


def voxels_on_grid(image: torch.Tensor, spatial_size: Sequence[int], orientation: str) -> torch.Tensor:
    """False (1, D, H, W) where the grid must not reach in ``image`` (C, D, H, W).

    With this as its ``select_fn`` MONAI's ``CropForeground`` leaves a box about whose centre MONAI then pads and crops.
    """
    sides = image.shape[1:]
    chosen = torch.ones(1, *sides, dtype=torch.bool, device=image.device)
    if all(side <= size for side, size in zip(sides, spatial_size, strict=True)):
        return chosen
    starts = grid_starts(sides, spatial_size, head_extent(image.amax(0)), orientation)
    for axis, (side, size, start) in enumerate(zip(sides, spatial_size, starts, strict=True), 1):
        if side > size and start != side // 2 - size // 2:
            chosen.narrow(axis, 0, start).fill_(False)
            chosen.narrow(axis, start + size, side - start - size).fill_(False)
    return chosen


def above_minimum(image: torch.Tensor) -> torch.Tensor:
    """``image`` less its minimum: MONAI pads with 0, which must be as dark as a scan can be."""
    return image - image.min()


def head_in_mm(image: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The sides of a scan (3,), and from where to where the head reaches in it (3, 2), in mm along R, A and S."""
    data, voxel = in_ras(image, image.data)
    extent = head_extent(torch.from_numpy(np.ascontiguousarray(data)))
    return data.shape * voxel, np.array(extent) * voxel[:, None]


def share_outside(image: Volume, lesion: np.ndarray, spacing: Sequence[float], spatial_size: Sequence[int]) -> float:
    """The share of ``lesion`` (D, H, W; boolean), drawn on a scan, that the grid does not hold.

    Spacing in mm and size in voxels are in RAS order.
    """
    lesion, voxel = in_ras(image, lesion)
    sides = np.round(lesion.shape * voxel / spacing)
    if (sides <= spatial_size).all():
        return 0.0
    in_mm, extent = head_in_mm(image)
    starts = grid_starts(sides, spatial_size, extent * (sides / in_mm)[:, None], "RAS")
    places = (np.argwhere(lesion) + 0.5) * voxel / spacing - starts
    return float(((places < 0) | (places > spatial_size)).any(1).mean())
