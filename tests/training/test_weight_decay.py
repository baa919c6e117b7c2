"""By the key decay_norm_and_bias, normalizations and biases do without weight decay, whatever the optimizer."""

import pytest
import torch
from conftest import MENUS, TRAIN
from monai.bundle import ConfigParser

from scripts.training.weight_decay import parameter_groups


def test_a_step_without_gradients_shrinks_kernels_alone() -> None:
    """A decayed parameter is multiplied by 1 - lr * weight_decay; see Loshchilov and Hutter (2019)."""
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    parameters = list(network.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameter_groups(parameters, decay_norm_and_bias=False), lr=0.1, weight_decay=0.5)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    (kernel, *vectors), (kernel_before, *vectors_before) = parameters, before
    torch.testing.assert_close(kernel, 0.95 * kernel_before)
    assert all(map(torch.equal, vectors, vectors_before))
    assert parameter_groups(parameters, decay_norm_and_bias=True) == parameters


@pytest.mark.parametrize("name", MENUS["optimizer"])
def test_norms_and_biases_can_do_without_weight_decay(name: str) -> None:
    parser = ConfigParser()
    parser.read_config(TRAIN)
    parser.update({"network_def#channels": 2, "decay_norm_and_bias": False, "optimizer_name": name})
    parser.get_parsed_content("config")
    decayed, free = parser.get_parsed_content("optimizer").param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (3e-5, 0)
    assert {p.ndim for p in decayed["params"]} == {5}
    assert {p.ndim for p in free["params"]} == {1}
    assert len(decayed["params"]) + len(free["params"]) == len(list(parser.get_parsed_content("network").parameters()))
