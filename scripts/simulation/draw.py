"""Random numbers of a simulated scan, by name from a table of ranges, and smooth random fields."""

import numpy as np
import torch


class Draw:
    """Draws from ``ranges``: uniformly from a pair, true with the probability that a single number gives."""

    def __init__(self, rng: np.random.Generator, ranges: dict) -> None:
        self.rng, self.ranges = rng, ranges

    def __call__(self, name: str) -> float:
        """A number from the range ``name``."""
        return self.rng.uniform(*self.ranges[name])

    def chance(self, name: str) -> bool:
        """Whether what has the probability ``name`` happens."""
        return self.rng.random() < self.ranges[name]

    def noise(self, shape: tuple[int, ...], scale: float, n: int = 1) -> np.ndarray:
        """Smooth fields (n, *shape) of mean 0 and standard deviation 1, correlated over about ``scale`` voxels."""
        coarse = [int(-(-side // scale)) + 3 for side in shape]
        values = torch.from_numpy(self.rng.standard_normal((1, n, *coarse), dtype=np.float32))
        steps = [torch.arange(side) / scale + float(self.rng.random()) for side in shape]
        field = values[0]
        for axis, step in enumerate(steps, 1):  # quadratic B-spline along one axis after another
            first, t = step.long(), (step % 1).reshape([-1 if a == axis else 1 for a in range(4)]).float()
            a, b, c = (field.index_select(axis, first + k) for k in range(3))
            field = a * (0.5 * (1 - t) ** 2) + b * (0.75 - (t - 0.5) ** 2) + c * (0.5 * t**2)
        return (field / field.std()).numpy()
