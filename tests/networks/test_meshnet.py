"""MeshNet is the paper's network: its parameters, its layers, its initialization, its answers."""

import math
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional

from scripts.networks.meshnet import MeshNet, is_meshnet


def plain_meshnet(state: dict, x: torch.Tensor, dilations: tuple[int, ...], training: bool) -> torch.Tensor:
    """The network written out in torch's functions."""
    for i, d in enumerate(dilations):
        conv, norm = f"layers.{i}.0", f"layers.{i}.1"
        x = functional.conv3d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=d, dilation=d)
        if training:
            mean = x.mean((0, 2, 3, 4))
            variance = x.var((0, 2, 3, 4), unbiased=False)
        else:
            mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        shape = (1, -1, 1, 1, 1)
        x = (x - mean.view(shape)) / torch.sqrt(variance.view(shape) + 1e-5)
        x = (x * state[f"{norm}.weight"].view(shape) + state[f"{norm}.bias"].view(shape)).clamp(min=0)
    return functional.conv3d(x, state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize(("channels", "parameters"), [(5, 5_682), (16, 56_194), (26, 147_474)])
def test_parameter_count_is_the_papers(channels: int, parameters: int) -> None:
    assert sum(p.numel() for p in MeshNet(channels=channels).parameters()) == parameters


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("arguments", "grid"),
    [
        ({"channels": 3}, (16, 32, 16)),  # all sides multiples of 16: every layer is dense
        ({"channels": 2}, (16, 20, 18)),  # of 16, 4 and 2
        ({"channels": 2}, (24, 40, 1)),
        ({"channels": 2}, (7, 9, 11)),
        ({"channels": 3, "in_channels": 2, "out_channels": 4, "dilations": (1, 3, 2)}, (6, 9, 12)),
    ],
)
def test_output_gradients_and_statistics_are_those_of_plain_torch(arguments: dict, grid: tuple, training: bool) -> None:
    torch.manual_seed(0)
    network = MeshNet(**arguments).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.uniform_(0.5, 1.5)
    network.train(training)
    x = torch.rand(2, arguments.get("in_channels", 1), *grid, dtype=torch.float64)
    state = {
        key: value.clone().requires_grad_(value.is_floating_point()) for key, value in network.state_dict().items()
    }
    dilations = arguments.get("dilations", (1, 2, 4, 8, 16, 16, 8, 4, 2))
    output, expected = network(x), plain_meshnet(state, x, dilations, training)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    pull = torch.rand_like(output)
    (output * pull).sum().backward()
    (expected * pull).sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, rtol=1e-9, atol=1e-9 * pull.numel())


def test_exports_are_plain_convolutions_for_any_grid(tmp_path: Path) -> None:
    network = MeshNet(channels=3).eval()
    scripted = torch.jit.script(network)
    scripted.save(str(tmp_path / "model.ts"))
    for grid in ((16, 16, 32), (9, 20, 13)):
        x = torch.rand(1, 1, *grid)
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.ts"))(x), network(x), rtol=1e-4, atol=1e-5)
        traced = torch.jit.trace(network, torch.rand(1, 1, 8, 8, 8))
        torch.testing.assert_close(traced(x), network(x), rtol=1e-4, atol=1e-5)


def test_running_statistics_are_torchs() -> None:
    network, x = MeshNet(channels=2), torch.rand(1, 1, 8, 8, 8)
    first = network.layers[0][0](x)
    network.train()(x)
    norm = network.layers[0][1]
    torch.testing.assert_close(norm.running_mean, 0.1 * first.mean((0, 2, 3, 4)))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * first.var((0, 2, 3, 4)))


def test_weights_start_xavier_normal_with_relu_gain_and_no_bias() -> None:
    torch.manual_seed(0)
    network = MeshNet(channels=26)
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            fan = (module.in_channels + module.out_channels) * math.prod(module.kernel_size)
            expected = math.sqrt(2) * math.sqrt(2 / fan)
            n = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * n))
            assert not module.bias.any()


def test_dilations_are_the_papers_and_padding_keeps_the_grid() -> None:
    network = MeshNet(channels=2)
    convolutions = [layer[0] for layer in network.layers]
    assert [c.dilation[0] for c in convolutions] == [1, 2, 4, 8, 16, 16, 8, 4, 2]
    assert network.classifier.kernel_size == (1, 1, 1)
    assert network(torch.zeros(1, 1, 5, 32, 9)).shape == (1, 2, 5, 32, 9)


def test_receptive_field_is_the_sum_of_the_dilations() -> None:
    torch.manual_seed(0)
    network = MeshNet(channels=3, dilations=(1, 2, 4)).eval()  # reaches 7 voxels to each side
    x = torch.rand(1, 1, 19, 19, 19, requires_grad=True)
    network(x)[0, 1, 9, 9, 9].backward()
    reached = x.grad[0, 0].abs().amax((1, 2)) > 0
    assert reached.nonzero().flatten().tolist() == list(range(2, 17))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_papers_network_sees_61_voxels_to_each_side_and_no_further(axis: int) -> None:
    network = MeshNet(channels=1).eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)  # positive, so that nothing cancels and no ReLU is off
    grid = [1, 1, 1]
    grid[axis] = 127
    x = torch.ones(1, 1, *grid, dtype=torch.float64, requires_grad=True)
    network.double()(x).flatten(2)[0, 1, 63].backward()
    assert x.grad.flatten().nonzero().flatten().tolist() == list(range(63 - 61, 63 + 61 + 1))


def test_weights_give_the_same_answer_in_another_network_with_or_without_dropout() -> None:
    torch.manual_seed(0)
    first, x = MeshNet(channels=3, dilations=(1, 2)), torch.rand(1, 1, 6, 7, 8)
    first(x)  # moves the running statistics
    second = MeshNet(channels=3, dilations=(1, 2), dropout=0.5)
    assert not torch.equal(first.eval()(x), second.eval()(x))
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(x), second(x))


def test_without_dropout_training_is_deterministic() -> None:
    network, x = MeshNet(channels=3), torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(network(x), network(x))


def test_dropout_acts_in_training_only() -> None:
    network, x = MeshNet(channels=8, dropout=0.5), torch.rand(1, 1, 8, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "^channels must be at least 1, got 0"),
        ({"in_channels": 0}, "^in_channels must be at least 1, got 0"),
        ({"out_channels": -1}, "^out_channels must be at least 1, got -1"),
        ({"channels": 1.0}, "^channels .* got 1.0 .expected an integer"),
        ({"in_channels": True}, "^in_channels .* got True .expected an integer"),
        ({"out_channels": "2"}, "^out_channels .* got '2' .expected an integer"),
        ({"checkpoint_layers": -1}, "^checkpoint_layers must be at least 0, got -1"),
        ({"checkpoint_layers": False}, "^checkpoint_layers .* got False .expected an integer"),
        ({"dilations": ()}, "^dilations must be one or more positive integers, got ()"),
        ({"dilations": (1, 0)}, "^dilations must be one or more positive integers"),
        ({"dilations": (1, 2.0)}, "^dilations must be one or more positive integers"),
        ({"dilations": [True]}, "^dilations must be one or more positive integers"),
        ({"dilations": "124"}, "^dilations must be one or more positive integers, got '124'"),
        ({"dilations": 2}, "^dilations must be one or more positive integers, got 2"),
        ({"dropout": 1.0}, r"^dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "^dropout must be in"),
        ({"dropout": math.nan}, "^dropout must be in .* got nan"),
        ({"dropout": "0.1"}, "^dropout must be in .* got '0.1'"),
        ({"dropout": False}, "^dropout must be in .* got False"),
        ({"norm": "bach"}, "^norm must be .* got 'bach'.*did you mean 'BATCH'"),
        ({"norm": "layer"}, "^norm must be .* got 'layer'"),
        ({"norm": ("group", {"num_groups": 1})}, "^norm must be .*expected .batch., .instance. or null"),
        ({"norm": ("instance", {"afine": True})}, "^norm must be .*afine"),
        ({"norm": 5}, "^norm must be .* got 5"),
        ({"act": "rellu"}, "^act must be .* got 'rellu'.*did you mean 'RELU'"),
        ({"act": None}, "^act must be .* got None"),
        ({"act": "geglu"}, "^act must be .* got 'geglu'.*keeps the shape"),
        ({"act": ("prelu", {"num_parameters": 3})}, "^act must be .*num_parameters"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshNet(**arguments)


@pytest.mark.parametrize("weights", sorted(path.stem for path in (ROOT / "models").glob("*.pt")))
def test_released_weights_give_the_answer_of_torchs_own_layers(weights: str) -> None:
    state = torch.load(ROOT / "models" / f"{weights}.pt", weights_only=True)
    width = len(state["classifier.weight"][0])
    layers = [
        nn.Sequential(nn.Conv3d(n, width, 3, padding=d, dilation=d), nn.BatchNorm3d(width), nn.ReLU())
        for n, d in zip([1] + 8 * [width], (1, 2, 4, 8, 16, 16, 8, 4, 2), strict=True)
    ]
    theirs = nn.ModuleDict({"layers": nn.Sequential(*layers), "classifier": nn.Conv3d(width, 2, 1)})
    theirs.load_state_dict(state, strict=True)
    theirs, ours = theirs.double().eval(), MeshNet(channels=width).double().eval()
    ours.load_state_dict(state, strict=True)
    x = torch.rand(1, 1, 16, 20, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs["classifier"](theirs["layers"](x))
        torch.testing.assert_close(ours(x), expected, rtol=1e-9, atol=1e-9)


def test_norm_and_act_are_layers_of_monai_and_the_others_keep_their_names() -> None:
    keys = list(MeshNet(channels=2, dilations=(1,)).state_dict())
    assert keys[:2] == ["layers.0.0.weight", "layers.0.0.bias"]
    assert keys[2:4] == ["layers.0.1.weight", "layers.0.1.bias"]
    none = MeshNet(channels=2, dilations=(1, 2), norm=None, act="elu")
    assert [key for key in none.state_dict() if ".1." in key.removeprefix("layers.1")] == []
    assert [type(module) for module in none.layers[1]] == [nn.Conv3d, nn.Identity, nn.ELU]
    instance = MeshNet(channels=2, norm=["instance", {"affine": True}], act=("leakyrelu", {"negative_slope": 0.3}))
    assert isinstance(instance.layers[3][1], nn.InstanceNorm3d)
    assert instance.layers[3][1].affine
    assert instance.layers[3][2].negative_slope == 0.3


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval_trains_by_the_running_statistics_and_leaves_them(norm_eval: bool) -> None:
    network = MeshNet(channels=3, dilations=(1, 2), norm_eval=norm_eval).double()
    for _, norm, *_ in network.layers:
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    before = [buffer.clone() for buffer in network.buffers()]
    x = torch.rand(1, 1, 8, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        inference = network.eval()(x)
    training = network.train()(x)
    training.sum().backward()
    assert torch.allclose(training, inference) == norm_eval
    assert all(map(torch.equal, network.buffers(), before)) == norm_eval
    assert all(p.grad is not None for p in network.parameters())
    assert network.training


@pytest.mark.parametrize("norm_eval", [True, False])
def test_frozen_layers_get_no_gradient_and_keep_their_statistics(norm_eval: bool) -> None:
    network = MeshNet(channels=3, dilations=(1, 2, 1), norm_eval=norm_eval, frozen_layers=2, dropout=0.5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):
        network(torch.rand(1, 1, 8, 8, 8)).sum().backward()
    assert {name for name, p in network.named_parameters() if p.grad is None} == {
        name for name in before if name.startswith(("layers.0", "layers.1")) and name.endswith(("weight", "bias"))
    }
    after = network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("layers.2") for name in moved)
    assert ("layers.2.1.running_mean" in moved) != norm_eval


def test_a_meshnet_is_known_however_it_is_wrapped() -> None:
    network = MeshNet(channels=2, dilations=(1,))
    averaged = torch.optim.swa_utils.AveragedModel(network)
    for wrapped in (network, torch.compile(network), averaged, torch.compile(averaged)):
        assert is_meshnet(wrapped)
    assert not is_meshnet(torch.nn.Conv3d(1, 1, 1))
