"""A head in air is computed in its box as in the whole volume, whatever the network is made of."""

import pytest
import torch
from torch import nn

from scripts.execution.air import can_skip_air, infer_in_air, reach
from scripts.networks import interleaved
from scripts.networks.meshnet import MeshNet
from tests.execution.conftest import network_of

DILATIONS = (1, 2, 4, 4, 2)  # a head is seen 13 voxels away
KINDS = [
    {},
    {"norm": None, "act": "elu"},
    {"act": "prelu"},
    {"norm": ("instance", {"affine": True, "track_running_stats": True}), "act": "gelu"},
]


def scan(side: int, head: tuple[slice, ...], air: float = 0.07) -> torch.Tensor:
    x = torch.full((1, 1, side, side, side), air, dtype=torch.float64)
    x[(..., *head)] = torch.rand(x[(..., *head)].shape, dtype=torch.float64)
    return x


def in_double(**kind: object) -> MeshNet:
    return network_of(dilations=DILATIONS, **kind).double()


@pytest.mark.parametrize("voxels_at_once", [500, 10**9])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_on_constant_air_the_answer_within_the_head_is_exact(
    kind: dict, voxels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", voxels_at_once)
    network = in_double(**kind).to(memory_format=torch.channels_last_3d)
    head, box = (slice(20, 29), slice(18, 26), slice(22, 30)), (slice(12, 36), slice(12, 32), slice(14, 38))
    assert reach(DILATIONS) == 6
    x = scan(52, head)
    with torch.no_grad():
        whole, cut = network(x), infer_in_air(network, x, box, torch.tensor([0.07]))
        padded = torch.zeros_like(whole)
        padded[(..., *box)] = network(x[(..., *box)])
    inside = (..., *head)
    torch.testing.assert_close(cut[inside], whole[inside], rtol=1e-7, atol=1e-7)  # 0.07 is rounded to float32
    assert (padded[inside] - whole[inside]).abs().max() > 1e-4  # what zeros in the place of air would give
    far = cut[0, :, 0, 0, 0]
    assert torch.equal(cut[0, :, -1, 5, 3], far)
    torch.testing.assert_close(far, network(scan(40, (slice(0),) * 3))[0, :, 20, 20, 20].detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("voxels_at_once", [500, 10**9])
def test_where_the_box_ends_with_the_volume_there_is_the_networks_own_padding(
    voxels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slab over all of two axes, at the beginning of the third; and a box that is the whole volume."""
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", voxels_at_once)
    network, x = in_double(), scan(32, (slice(0, 9), slice(0, 32), slice(0, 32)))
    everything, air = slice(0, 32), torch.tensor([0.07])
    with torch.no_grad():
        whole = network(x)
        torch.testing.assert_close(infer_in_air(network, x, (everything,) * 3, air), whole, rtol=1e-6, atol=1e-6)
        network, x = in_double(), scan(32, (slice(0, 9), slice(0, 32), slice(0, 32)))
        x[..., 9:, :, :] = 0.07
        ended = infer_in_air(network, x, (slice(0, 16), everything, everything), air)[..., :9, 13:19, 13:19]
    torch.testing.assert_close(ended, whole[..., :9, 13:19, 13:19], rtol=1e-6, atol=1e-6)


def test_under_autocast_it_is_the_network_within_what_the_type_allows() -> None:
    network = network_of(channels=8, dilations=DILATIONS).to(memory_format=torch.channels_last_3d)
    head = (slice(20, 30),) * 3
    x = scan(52, head).float()
    with torch.no_grad():
        exact = network(x)[(..., *head)]
        with torch.autocast("cpu", torch.bfloat16):
            cut = infer_in_air(network, x, (slice(8, 40),) * 3, torch.tensor([0.07]))[(..., *head)]
    assert (cut - exact).abs().max() < 0.1 * exact.abs().max()


def test_networks_that_look_at_the_whole_volume_cannot() -> None:
    assert can_skip_air(MeshNet(channels=2))
    assert can_skip_air(MeshNet(channels=2, norm=None))
    assert not can_skip_air(MeshNet(channels=2, norm="instance"))
    assert not can_skip_air(MeshNet(channels=2, norm_adaptation=0.5))
    assert not can_skip_air(MeshNet(channels=2, norm=("batch", {"track_running_stats": False})))
    assert not can_skip_air(nn.Conv3d(1, 2, 3))


def test_the_papers_network_needs_half_of_its_receptive_field() -> None:
    assert reach((1, 2, 4, 8, 16, 16, 8, 4, 2)) == 30  # it sees 61 voxels far
    assert reach((1, 1, 1)) == 1
