"""Random numbers of a simulated scan, by name from a table of ranges, and smooth random fields."""

import numpy as np
import torch


class Draw:
    """Draws by name from ``ranges``: pairs of limits, probabilities and standard deviations."""

    def __init__(self, rng: np.random.Generator, ranges: dict) -> None:
        self.rng, self.ranges = rng, ranges

    def __call__(self, name: str) -> float:
        """A number between the limits ``name``."""
        return self.rng.uniform(*self.ranges[name])

    def chance(self, name: str) -> bool:
        """Whether what has the probability ``name`` happens."""
        return self.rng.random() < self.ranges[name]

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        """Numbers around 0 with the standard deviation ``name``."""
        return torch.from_numpy(self.rng.normal(0, self.ranges[name], shape)).float()

    def noise(self, shape: tuple[int, ...], scale: float, n: int = 1) -> np.ndarray:
        """Smooth fields (n, *shape) of mean 0 and standard deviation 1: quadratic B-splines of ``scale`` voxels."""
        knots = [int(-(-side // scale)) + 3 for side in shape]
        field = torch.from_numpy(self.rng.standard_normal((n, *knots), dtype=np.float32))
        places = [torch.arange(side) / scale + float(self.rng.random()) for side in shape]
        for axis, place in enumerate(places, 1):
            first, t = place.long(), (place % 1).reshape([-1 if a == axis else 1 for a in range(4)])
            a, b, c = (field.index_select(axis, first + k) for k in range(3))
            field = a * (0.5 * (1 - t) ** 2) + b * (0.75 - (t - 0.5) ** 2) + c * (0.5 * t**2)
        return (field / field.std()).numpy()
