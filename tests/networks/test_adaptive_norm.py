"""A mixture of statistics normalizes in evaluation; training is BatchNorm's."""

import copy

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from scripts.networks.adaptive_norm import AdaptiveBatchNorm3d, FixedNorm, norm_shift
from scripts.networks.meshnet import MeshNet


def moved(network: nn.Module) -> nn.Module:
    """The network with statistics and weights that are not those of the start."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for values in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                values.copy_(0.2 + torch.rand(values.shape, generator=generator))
    return network


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, 8, 9, 10, generator=torch.Generator().manual_seed(1)) * 5


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_it_normalizes_by_the_mixture_of_mean_and_variance_of_every_second_voxel(
    share: float, image: torch.Tensor
) -> None:
    norm = moved(AdaptiveBatchNorm3d(3, share)).eval()
    own = image[..., ::2, ::2, ::2].movedim(1, 0).flatten(1)
    mean = (1 - share) * norm.running_mean + share * own.mean(1)
    var = (1 - share) * norm.running_var + share * own.var(1, correction=0)
    standard = (image - mean[:, None, None, None]) / (var + norm.eps).sqrt()[:, None, None, None]
    expected = standard * norm.weight[:, None, None, None] + norm.bias[:, None, None, None]
    before = copy.deepcopy(norm.state_dict())
    torch.testing.assert_close(norm(image), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("momentum", [0.1, None])  # None is what update_bn sets
def test_training_is_that_of_batch_norm(momentum: float | None, image: torch.Tensor) -> None:
    ours, torchs = AdaptiveBatchNorm3d(3, 0.5), nn.BatchNorm3d(3)
    ours.momentum = torchs.momentum = momentum
    for factor in (1, 2):
        assert torch.equal(ours(factor * image), torchs(factor * image))
    for name, value in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


@pytest.mark.parametrize("sides", [(32, 40, 32), (33, 27, 35)])
@pytest.mark.parametrize("dilations", [(1, 2, 4, 8, 16, 16, 8, 4, 2), (1, 2, 3), (3,)])
def test_an_interleaved_network_adapts_as_the_dilated_one_and_takes_old_weights(dilations: tuple, sides: tuple) -> None:
    plain = moved(MeshNet(channels=4, dilations=dilations)).eval()
    network = MeshNet(channels=4, dilations=dilations, norm_adaptation=0.5).eval()
    network.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.plain(x), atol=1e-4, rtol=1e-4)
        assert (network(x) - plain(x)).abs().max() > 0.1


@pytest.mark.parametrize("sides", [(1, 1, 1), (1, 2, 1), (24, 32, 24)])
def test_statistics_are_of_float32_under_autocast_and_of_any_number_of_voxels(sides: tuple) -> None:
    norm = moved(AdaptiveBatchNorm3d(3, 0.5)).eval()
    seen = (100 + torch.rand(1, 3, *sides, generator=torch.Generator().manual_seed(7))).bfloat16()
    fixed = FixedNorm(norm, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        fixed(seen)
    own = seen.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(fixed.fixed.running_mean, (norm.running_mean + own.mean(1).float()) / 2)
    torch.testing.assert_close(fixed.fixed.running_var, (norm.running_var + own.var(1, correction=0).float()) / 2)


def test_with_the_scans_own_statistics_alone_brightness_and_contrast_do_not_matter() -> None:
    network = moved(MeshNet(channels=4, norm_adaptation=1.0)).eval()
    x = torch.rand(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(3))
    network.layers[0][1].eps = 0.0
    first = network.layers[0]
    with torch.no_grad():  # but for the zeros beyond the volume
        inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
        one, other = (first[1](first[0](v)[inner]) for v in (x, 3 * x + 7))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm_adaptation": 1.5}, r"norm_adaptation must be in \[0, 1\], got 1.5"),
        ({"norm_adaptation": True}, r"norm_adaptation must be in \[0, 1\], got True"),
        ({"norm_adaptation": "0.5"}, r"norm_adaptation must be in \[0, 1\], got '0.5'"),
        ({"norm_adaptation": 0.5, "norm": "instance"}, "norm_adaptation is for norm \"batch\", got 'instance'"),
        ({"norm_adaptation": 0.5, "norm_shift_limit": -1}, "norm_shift_limit must be a number of at least 0"),
        ({"norm_adaptation": 0.5, "norm_shift_limit": "0.3"}, "norm_shift_limit must be a number of at least 0"),
        ({"norm_adaptation": 0.5, "norm_shift_limit": float("nan")}, "norm_shift_limit must be a number of at least 0"),
        ({"norm_shift_limit": 0.3}, "norm_shift_limit is for a norm_adaptation above 0"),
    ],
)
def test_a_share_that_cannot_be_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshNet(**arguments)


@pytest.mark.parametrize("dilation", [1, 3])
def test_the_shift_is_the_divergence_of_the_images_own_statistics_from_the_running_ones(dilation: int) -> None:
    convolution = nn.Conv3d(1, 2, 3, padding=dilation, dilation=dilation)
    norm = moved(nn.BatchNorm3d(2, eps=0.0)).eval()
    nn.init.dirac_(convolution.weight)  # the first channel is the image
    nn.init.zeros_(convolution.bias)
    convolution.weight.data[1], convolution.bias.data[1] = -2 * convolution.weight.data[0], 1
    image = torch.rand(1, 1, 7, 8, 9, generator=torch.Generator().manual_seed(4))
    seen = image[..., ::2, ::2, ::2]
    mean, sd = seen.mean(), seen.std(correction=0)
    own = torch.stack([mean, 1 - 2 * mean]), torch.stack([sd, 2 * sd])
    expected = kl_divergence(Normal(*own), Normal(norm.running_mean, norm.running_var.sqrt())).mean()
    torch.testing.assert_close(norm_shift(convolution, norm, image), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(norm_shift(convolution, norm, image), expected)


def test_only_images_beyond_the_limit_are_normalized_by_their_own_statistics() -> None:
    plain, always = moved(MeshNet(channels=4)).eval(), MeshNet(channels=4, norm_adaptation=0.5).eval()
    network = MeshNet(channels=4, norm_adaptation=0.5, norm_shift_limit=0.3).eval()
    near = torch.rand(1, 1, 16, 24, 16, generator=torch.Generator().manual_seed(5))
    x = plain.layers[0][0](near)
    plain.layers[0][1].running_mean, plain.layers[0][1].running_var = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4))
    for other in (always, network):
        other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(network(near), plain(near))
        assert network.adaptation_to(near) == 0
        far = 3 * near
        assert torch.equal(network(far), always(far))
        assert network.adaptation_to(far) == always.adaptation_to(near) == 0.5
        assert not torch.equal(network(far), plain(far))
        assert torch.equal(network.plain(far), plain.plain(far))
    assert network.train().adapted_to(far) is network


def test_what_is_adapted_to_one_image_normalizes_others_alike_and_shares_its_parameters() -> None:
    network = moved(MeshNet(channels=4, norm_adaptation=0.5, norm_shift_limit=1.0)).eval()
    calls = []
    network.classifier.register_forward_hook(lambda *_: calls.append(1))
    near = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(6))
    far = 1e3 * near
    with torch.no_grad():
        network.norm_shift_limit = 2 * float(norm_shift(*network.layers[0][:2], near))
        torch.testing.assert_close(network.adapted_to(far)(near), network.adapted_to(far).plain(near))
        assert not torch.allclose(network.adapted_to(far)(near), network(near))
        torch.testing.assert_close(network.adapted_to(near)(far), network.plain(far))
    assert calls
    state, adapted = network.state_dict(), network.adapted_to(far).state_dict()
    assert adapted.keys() == state.keys()
    assert {k for k, v in adapted.items() if v.data_ptr() != state[k].data_ptr()} == {
        k for k in state if "running" in k
    }
