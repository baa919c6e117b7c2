"""Random numbers of a simulated scan, by name from a table of ranges, and smooth random fields."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage


@dataclass
class Draw:
    """Draws by name from ``ranges``: pairs of limits, probabilities and standard deviations."""

    rng: np.random.Generator
    ranges: dict

    def __call__(self, name: str) -> float:
        """A number between the limits ``name``."""
        return float(self.rng.uniform(*self.ranges[name]))

    def chance(self, name: str) -> bool:
        """Whether what has the probability ``name`` happens."""
        return self.rng.random() < self.ranges[name]

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Numbers around 0 with the standard deviation ``name``."""
        return torch.from_numpy(self.rng.normal(0, self.ranges[name], shape)).float()

    def noise(self, shape: tuple[int, ...], scale: float, n: int = 1) -> np.ndarray:
        """Smooth fields (n, *shape) of mean 0 and standard deviation 1: quadratic B-splines of ``scale`` voxels."""
        knots = [int(-(-side // scale)) + 3 for side in shape]
        field = self.rng.standard_normal((n, *knots), dtype=np.float32)
        bases = []
        for side, count in zip(shape, knots, strict=True):
            place = np.arange(side) / scale + self.rng.random()
            away = np.abs(place[:, None] - np.arange(count) + 0.5)
            bases.append(np.where(away < 0.5, 0.75 - away**2, 0.5 * np.clip(1.5 - away, 0, None) ** 2))
        field = along_axes(field, bases)
        return (field / field.std()).numpy()


def smooth(volume: np.ndarray, mm: float | np.ndarray, voxel: float | np.ndarray) -> np.ndarray:
    """``volume`` (D, H, W) blurred by a Gaussian of standard deviation ``mm``, one for all axes or one for each."""
    sigmas = np.maximum(np.broadcast_to(np.asarray(mm) / voxel, 3), 1e-3)
    sides = zip(volume.shape, sigmas, strict=True)
    filters = [ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, truncate=3) for side, sigma in sides]
    return along_axes(volume[None].astype(np.float32), filters)[0].numpy()


def along_axes(volume: np.ndarray, matrices: list[np.ndarray]) -> torch.Tensor:
    """``volume`` (n, a, b, c) multiplied by a matrix along each of its last three axes."""
    result = torch.from_numpy(volume)
    for matrix in matrices:
        result = torch.tensordot(result, torch.from_numpy(matrix).float(), ([1], [1]))
    return result.contiguous()
