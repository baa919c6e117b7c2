"""What a volume in memory is, where its voxels lie, and what in it is lesion if it is a mask."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from scripts.common.errors import InputError

FEW = 5  # different values that a scale factor may make of labels; interpolation makes more


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a mask: ``data`` (X, Y, Z; float32; scale factors applied) and the ``affine`` (4, 4) from voxels to mm.

    ``header`` is the file's own, as nibabel reads it; ``n_nan`` voxels were NaN and are 0.
    """

    path: str
    data: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    sides_known: bool
    n_nan: int
    sha256: str
    warnings: list[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """In voxels."""
        return self.data.shape


def is_annexed(path: Path) -> bool:
    """Whether git-annex has left only a link to the file's content: a symbolic one, or a text that is a path."""
    if not os.path.isfile(path):
        return "/annex/objects/" in os.path.realpath(path)
    try:
        with path.open("rb") as file:
            return b"/annex/objects/" in file.read(200)
    except OSError:  # reading it says why
        return False


def is_like_a_mask(data: np.ndarray) -> bool:
    """Whether a volume has two values, or three that are whole: no scan has; one is looked at up to its fourth."""
    voxels, found = data.ravel(order="K"), np.empty(0)
    for start in range(0, voxels.size, 2**16):
        found = np.union1d(found, voxels[start : start + 2**16])
        if len(found) > 3:
            return False
    return len(found) == 2 or (len(found) == 3 and not (found % 1).any())


def lesion_of(mask: Volume) -> np.ndarray:
    """What is lesion (X, Y, Z; bool) in a drawn ``mask``: all above 0, as a scale factor can make 0.017 of a 1.

    Raises:
        InputError: the mask was interpolated, so that 0 is not where its edge is, or some of it is NaN.
    """
    lesion = mask.data > 0
    if mask.n_nan:
        raise InputError(f"{mask.path}: {mask.n_nan} voxels are NaN or infinite")
    values = np.unique(mask.data[lesion])
    n = len(np.unique((values / values[-1]).round(3))) if values.size else 0
    if n > FEW and ((values % 1).any() or _is_gradual(mask.data)):
        raise InputError(
            f"{mask.path}: {n} different values above 0 (an interpolated mask or a probability); "
            f"cut it at half: `fslmaths MASK -thr {values[-1] / 2:g} -bin NEW`"
        )
    return lesion


def _is_gradual(data: np.ndarray) -> bool:
    """Whether neighbours above 0 often differ, as where an edge was interpolated; numbered lesions hardly touch."""
    pairs = [(data.take(range(1, n), axis), data.take(range(n - 1), axis)) for axis, n in enumerate(data.shape)]
    inside = [(a > 0) & (b > 0) for a, b in pairs]
    differ = sum(int((both & (a != b)).sum()) for both, (a, b) in zip(inside, pairs, strict=True))
    return differ > 0.03 * sum(int(both.sum()) for both in inside)


def off_grid(label: Volume, image: Volume) -> str | None:
    """How the grid of ``label`` differs from its image's; None if by less than a tenth of a voxel."""
    if label.shape != image.shape:
        return f"shape {label.shape}, but its image has {image.shape}"
    ours, theirs = voxel_sizes(label.affine), voxel_sizes(image.affine)
    if not np.allclose(ours, theirs, rtol=0.01):
        return f"spacing {ours.round(3).tolist()} mm, but its image has {theirs.round(3).tolist()}"
    axes, expected = ("".join(map(str, nib.aff2axcodes(volume.affine))) for volume in (label, image))
    if axes != expected:
        return f"orientation {axes}, but its image has {expected}"
    shift = largest_shift(label.affine, image.affine, image.shape)
    return f"its affine moves it {shift:.1f} mm away from its image" if shift > 0.1 * theirs.min() else None


def largest_shift(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart, along an axis of the world, two affines (4, 4) place a voxel of a volume, at most."""
    corners = np.indices((2, 2, 2)).reshape(3, 8).T * (np.array(shape) - 1)
    return float(np.abs(apply_affine(affine - other, corners)).max())


def in_ras(image: Volume, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A view of the ``data`` (D, H, W) of ``image`` with its axes along R, A and S, and their voxel sizes in mm."""
    turn = nib.io_orientation(image.affine)
    return nib.apply_orientation(data, turn), voxel_sizes(image.affine)[np.argsort(turn[:, 0])]


def ras_axes(orientation: str) -> list[int]:
    """Return the axis of a RAS grid (0, 1 or 2) along which each letter of an ``orientation`` such as "LAS" runs."""
    return ["RLAPSI".index(letter) // 2 for letter in orientation]


def along(values: Sequence, orientation: str) -> list:
    """Return ``values`` of the axes of a RAS grid in the order of the axes of an ``orientation`` such as "PIR"."""
    return [values[axis] for axis in ras_axes(orientation)]
