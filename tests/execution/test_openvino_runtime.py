"""A graph of OpenVINO answers as the network does; without OpenVINO nothing is computed here."""

import pytest
import torch

from scripts.execution import openvino_runtime
from scripts.execution.air import infer_in_air
from scripts.networks.interleaved import forward, infer
from tests.execution.conftest import network_of

needs_openvino = pytest.mark.skipif(
    not openvino_runtime.has_openvino, reason="OpenVINO is optional: pip install openvino"
)


@needs_openvino
@pytest.mark.parametrize("kind", [{}, {"norm": None, "act": "elu"}], ids=str)
@pytest.mark.parametrize("box", [None, (slice(8, 40),) * 3, (slice(0, 32), slice(8, 40), slice(16, 48))], ids=str)
@pytest.mark.parametrize("shape", [(48, 48, 48)])
def test_it_answers_as_torch_does_in_a_box_and_without(kind: dict, box: tuple | None, shape: tuple) -> None:
    network, x = network_of(**kind), torch.full((1, 1, *shape), 0.1)
    x[..., 15:30, 15:30, 20:30] = torch.rand(15, 15, 10)
    compute = lambda run: infer_in_air(network, x, box, torch.tensor([0.1]), run)  # noqa: E731
    compute = compute if box else lambda run: forward(network, x, run)
    with torch.no_grad():
        expected, got = (compute(run) for run in (infer, openvino_runtime.infer))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = compute(openvino_runtime.infer)
    assert (half - expected).abs().max() < 0.1 * expected.abs().max()


@needs_openvino
def test_odd_sides_are_dilated_where_they_cannot_be_interleaved() -> None:
    network, x = network_of(), torch.rand(1, 1, 20, 17, 35)
    with torch.no_grad():
        torch.testing.assert_close(forward(network, x, openvino_runtime.infer), network(x), rtol=1e-4, atol=1e-4)
