"""The MNI152 head on a coarse grid."""

import pytest
import torch

from scripts.simulation.anatomy import load_head


@pytest.fixture(scope="session")
def head() -> torch.Tensor:
    return load_head("MNI152", 4)
