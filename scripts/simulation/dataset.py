"""New simulated scans in every epoch: the first transform of a training set that has no files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Randomizable, Transform

from scripts.common.errors import InputError
from scripts.data.volumes import ras_axes
from scripts.simulation.anatomy import load_head, resolution_for
from scripts.simulation.lesions import load_masks
from scripts.simulation.scanner import RANGES, simulate_scan


class SimulateScand(Randomizable, Transform):
    """Puts a new ``image`` (1, D, H, W; 0 to 1) and ``label`` (1, D, H, W; 0 or 1) into each item.

    A scan depends on the random state alone: with ``SeededDataset``, on the run's seed, the epoch and the index.

    Args:
        spacing: isotropic, in mm.
        spatial_size: voxels, along the axes of ``orientation``; the scan itself is in RAS.
        anatomies: heads in MNI space, T1-weighted or, if their names end so, T2-weighted (``T2w``; their brightness is
            kept in part) or label maps of FreeSurfer or SynthSeg (``dseg``): files, folders or patterns like
            ``heads/*dseg*``; or "MNI152" for that average.
        lesions: folders of real lesion masks in MNI space that are used besides grown ones.
        ranges: entries of ``patients`` in ranges.json to replace.
        orientation: such as "RAS".

    Raises:
        InputError: a file cannot be read.
        ValueError: anisotropic ``spacing``, or ``ranges`` that do not exist.
    """

    def __init__(
        self,
        spacing: Sequence[float],
        spatial_size: Sequence[int],
        anatomies: Sequence[str] = ("MNI152",),
        lesions: Sequence[str] = (),
        ranges: dict | None = None,
        orientation: str = "RAS",
    ) -> None:
        known, ranges = RANGES["patients"], ranges or {}
        if len(set(spacing)) > 1:
            raise ValueError(f"spacing {spacing}: simulated scans have isotropic voxels")
        if not ranges.keys() <= known.keys():
            raise ValueError(f"ranges {sorted(ranges.keys() - known.keys())}: expected some of {sorted(known)}")
        self.voxel, self.ranges = float(spacing[0]), known | ranges
        self.shape = tuple(size for _, size in sorted(zip(ras_axes(orientation), spatial_size, strict=True)))
        paths = [path for name in anatomies for path in _head_files(name)]
        self.heads = [load_head(path, resolution_for(self.voxel)) for path in paths]
        self.masks = load_masks(lesions)

    def __call__(self, data: dict) -> dict:
        """The item with a scan of its own."""
        rng = np.random.default_rng(self.R.randint(2**32, dtype=np.uint32))
        volumes = simulate_scan(self.heads, self.masks, self.shape, self.voxel, rng, self.ranges)
        made = {"affine": torch.eye(4) * self.voxel, "meta": {"filename_or_obj": "simulated"}}
        tensors = [MetaTensor(torch.from_numpy(volume)[None], **made) for volume in volumes]
        return {**data, "image": tensors[0], "label": tensors[1]}


def _head_files(name: str) -> list[str]:
    """The files that ``name`` stands for: those in a folder, those that match a pattern, or one."""
    path = Path(name)
    folder, pattern = (path, "*.nii*") if path.is_dir() else (path.parent, path.name)
    if path.is_dir() or "*" in name or "?" in name:
        if not (paths := sorted(map(str, folder.glob(pattern)))):
            raise InputError(f"--anatomies {name}: no NIfTI file (*.nii, *.nii.gz) there")
        return paths
    return [name]
