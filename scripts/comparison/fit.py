"""Whether a network can be trained on a grid, found without computing anything, and how many parameters it has."""

import math
import re
from dataclasses import dataclass

import torch
from monai.bundle import ConfigParser
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.common.errors import describe


@dataclass(frozen=True)
class Fit:
    """``parameters`` of the network that a recipe trains, if it has one; ``reason`` if it cannot be trained.

    Without ``gradients`` it is something else that is fitted, of which nothing can be said beforehand.
    """

    parameters: int | None = None
    reason: str | None = None
    gradients: bool = False


def trains_by_steps(recipe: ConfigParser) -> bool:
    """Whether what a recipe runs is its trainer; an overlay may fit something else."""
    return any(re.search("@train(#|::)trainer", str(step)) for step in recipe["run"])


def fit(recipe: ConfigParser) -> Fit:
    """Build the network of ``recipe`` and pass a volume of its grid through it as in training, in shapes only."""
    if not trains_by_steps(recipe):
        return Fit()
    grid = recipe.get_parsed_content("spatial_size")
    try:
        network = recipe.get_parsed_content("network_def")
        parameters = sum(p.numel() for p in network.parameters())
        if not any(p.requires_grad for p in network.parameters()):
            return Fit(parameters)
        with FakeTensorMode(allow_non_fake_inputs=True):
            shape = network.train()(torch.zeros(1, 1, *grid)).shape
    except Exception as error:  # each network refuses a grid, or the lack of a package, in its own way
        return Fit(reason=f"cannot be trained at {'x'.join(map(str, grid))} ({describe(error)})")
    if math.prod(shape[2:]) != math.prod(grid):
        return Fit(parameters, f"gives {tuple(shape[2:])} voxels for {tuple(grid)}")
    return Fit(parameters, gradients=True)
