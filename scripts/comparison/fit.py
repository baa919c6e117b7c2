"""Say why a network cannot be trained on a grid, from the shapes alone, or not be evaluated then."""

import re

import torch
from monai.bundle import ConfigParser
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.common.errors import InputError, describe
from scripts.weights.card import network_from_card


def trains_by_steps(recipe: ConfigParser) -> bool:
    """Return whether a recipe runs its trainer; an overlay may fit something else."""
    return any(re.search("@train(#|::)trainer", str(step)) for step in recipe["run"])


def takes_gradients(recipe: ConfigParser) -> bool:
    """Return whether a recipe trains a network by gradient steps, all of which take the same time."""
    return trains_by_steps(recipe) and any(
        p.requires_grad for p in recipe.get_parsed_content("network_def").parameters()
    )


def misfit(recipe: ConfigParser) -> str | None:
    """Return why the network of ``recipe`` cannot be trained on its grid, or None.

    A volume passes through the network in training mode; nothing is computed but the shapes.
    """
    grid = tuple(recipe.get_parsed_content("spatial_size"))
    try:
        if not takes_gradients(recipe):
            return None
        with FakeTensorMode(allow_non_fake_inputs=True):
            found = recipe.get_parsed_content("network_def").train()(torch.zeros(1, 1, *grid)).shape[2:]
    except Exception as error:  # each network refuses a grid, or the lack of a package, in its own way
        return f"cannot be trained at {'x'.join(map(str, grid))} ({describe(error)})"
    return None if tuple(found) == grid else f"gives {tuple(found)} voxels for {grid}"


def refusal(recipe: ConfigParser) -> str | None:
    """Return why no card may name the network of ``recipe``, so that nothing reads its weights, or None."""
    try:
        network_from_card({"network_def": recipe.get_parsed_content("model_card#network_def")})
    except InputError as error:
        return str(error)
    return None
