"""A network as if it was trained."""

import torch
from torch import nn

from scripts.networks.meshnet import MeshNet


def network_of(**arguments: object) -> MeshNet:
    """With statistics and biases that make air's answers large."""
    torch.manual_seed(0)
    network = MeshNet(**{"channels": 3, "dilations": (1, 2, 4, 8, 2), **arguments}).eval()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim == 1 and tensor.is_floating_point():
            nn.init.uniform_(tensor, *((0.5, 1.5) if "var" in name else (-0.5, 0.5)))
    return network
