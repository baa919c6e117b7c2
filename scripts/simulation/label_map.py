"""Heads from FreeSurfer's or SynthSeg's label maps: which label is what, and how much of it there is where."""

import numpy as np
from scipy import ndimage

from scripts.simulation.random_draws import along_axes

# Labels, shares of CSF, grey and white matter, and brightness in a T2w scan relative to these (iron darkens), near what
# M2265's right side has. What is not named and is below 500 is taken for cortex, as are the parcels from 1000 on.
STRUCTURES = {
    "cortex": ((3, 42), (0, 1, 0), 1),
    "white matter": ((2, 41, 78, 79, 85, 192, 250, 251, 252, 253, 254, 255), (0, 0, 1), 1),
    "fluid": ((4, 5, 14, 15, 24, 43, 44, 72), (1, 0, 0), 1),
    "choroid plexus": ((31, 63, 136, 137, 163, 164), (0.7, 0.3, 0), 1),
    "bright white matter": ((25, 57, 77), (0, 0.5, 0.5), 1.1),
    "thalamus": ((9, 10, 48, 49), (0, 0.5, 0.5), 0.8),
    "caudate": ((11, 26, 50, 58), (0, 0.7, 0.3), 0.75),
    "putamen": ((12, 51), (0, 0.6, 0.4), 0.75),
    "pallidum": ((13, 52), (0, 0.2, 0.8), 0.6),
    "hippocampus": ((17, 18, 53, 54), (0, 1, 0), 1.05),
    "cerebellar cortex": ((8, 47), (0, 0.9, 0.1), 0.95),
    "cerebellar white matter": ((7, 46), (0, 0.1, 0.9), 1),
    "brain stem": ((16, 28, 60), (0, 0.2, 0.8), 1),
    "perforated substance": ((30, 62), (0.5, 0.5, 0), 0.8),
}
# What lies outside the brain, by the names of its ranges, and its labels in the maps that SynthSeg was trained on.
OUTSIDE = {
    "bone": (515,),
    "marrow": (516,),
    "skin": (511,),
    "fat": (507,),
    "muscle": (508, 530),
    "eyes": (506,),
    "vessels": (502, 514),
    "mucosa": (509,),
    "cord": (512,),
}
AIR = len(STRUCTURES)  # codes of structures come before it, those of what is outside after it


def shares_of(labels: np.ndarray, grid: tuple, resolution: float) -> np.ndarray:
    """The shares (3, D, H, W) of CSF, grey and white matter of ``labels`` at 1 mm on the coarser ``grid``: smooth."""
    table = np.zeros((3, 3000), np.float32)
    table[1, 1:500] = table[1, 1000:] = 1
    for known, shares, _ in STRUCTURES.values():
        table[:, known] = np.array(shares)[:, None]
    width, weights = max(0.6, 0.4 * resolution), []
    for coarse, fine in zip(grid[0], labels.shape, strict=True):
        away = np.arange(coarse)[:, None] * resolution - np.arange(fine)
        weight = np.exp(-((away / width) ** 2) / 2)
        weights.append(weight / weight.sum(1, keepdims=True))
    return np.concatenate([along_axes(row.take(labels)[None], weights) for row in table])


def region_codes(labels: np.ndarray, resolution: float) -> np.ndarray:
    """The place of each voxel's structure in ``STRUCTURES``, or ``AIR`` and what follows for what lies outside.

    Soft tissue (507) is fat below the skin and around the eyes, and muscle further in; fluid and cord below the brain
    stem count as outside.
    """
    table = np.full(3000, AIR, np.uint8)
    table[1:500] = table[1000:] = 0
    for code, (known, *_) in enumerate(STRUCTURES.values()):
        table[list(known)] = code
    names = list(OUTSIDE)
    for name, known in OUTSIDE.items():
        table[list(known)] = AIR + 1 + names.index(name)
    codes = table[labels]
    deep = ndimage.distance_transform_edt(~np.isin(labels, (0, 506, 511)), sampling=resolution) > 7
    codes[(labels == 507) & deep] = AIR + 1 + names.index("muscle")
    if (stem := np.flatnonzero((labels == 16).any((0, 1)))).size:
        codes[..., : stem[0]][codes[..., : stem[0]] == list(STRUCTURES).index("fluid")] = AIR + 1 + names.index("cord")
    return codes
