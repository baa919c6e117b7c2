"""All random states of a process are put back, also after a way through a file."""

import io
import random

import numpy as np
import torch

from scripts.training.random_states import random_states, set_random_states


def test_all_four_random_states_are_put_back() -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), np.random.rand(), random.random(), np.random.randn()]  # randn keeps a second draw

    np.random.randn()
    states = torch_round_trip(random_states())
    first = draw()
    assert draw() != first
    set_random_states(states)
    assert draw() == first


def torch_round_trip(states: dict) -> dict:
    """As a training's state is written and read, without running code."""
    torch.save(states, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=True)
