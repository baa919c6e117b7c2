"""MeshNet is the paper's network: its parameters, its layers, its initialization, its answers."""

import copy
import math
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from scripts.networks import meshnet
from scripts.networks.meshnet import MeshNet


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
        ({"channels": 4}, (16, 32, 48)),  # all sides multiples of 16: every layer is dense
        ({"channels": 4}, (16, 20, 18)),  # of 16, 4 and 2
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


@pytest.mark.parametrize("grid", [(16, 32, 16), (12, 9, 20)])
def test_running_statistics_are_those_of_the_layers_one_after_another(grid: tuple) -> None:
    torch.manual_seed(0)
    network, plain = MeshNet(channels=3).double(), MeshNet(channels=3).double()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(2, 1, *grid, dtype=torch.float64)
    for _ in range(2):
        network(x)
        y = x
        for layer in plain.layers:
            y = layer(y)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=1e-9, atol=1e-9)


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
        ({"dilations": ()}, "dilations must be one or more positive integers"),
        ({"dilations": (1, 0)}, "dilations must be one or more positive integers"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, "dropout must be in"),
    ],
)
def test_impossible_networks_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshNet(**arguments)


def plain(network: MeshNet, x: torch.Tensor) -> torch.Tensor:
    """The network as its modules say, dilated convolutions and all: what the interleaved execution must equal."""
    for layer in network.layers:
        x = layer(x)
    return network.classifier(x)


def random_case(seed: int) -> tuple[MeshNet, torch.Tensor]:
    """A network with statistics, and an input, of random width, batch size, layout, grid (odd sides too)."""
    torch.manual_seed(seed)
    pick = random.Random(seed)
    network = MeshNet(channels=pick.randint(1, 7), in_channels=pick.randint(1, 2)).double()
    for layer in network.layers:
        torch.nn.init.uniform_(layer[1].weight, 0.5, 2)
        torch.nn.init.uniform_(layer[1].bias)
        torch.nn.init.uniform_(layer[1].running_mean)
        torch.nn.init.uniform_(layer[1].running_var, 0.5, 2)
    side = lambda: pick.choice([pick.randint(1, 35), 8 * pick.randint(1, 4), 16, 32, 48])  # noqa: E731
    x = torch.rand(pick.randint(1, 3), network.layers[0][0].in_channels, side(), side(), side(), dtype=torch.float64)
    if pick.random() < 0.5:
        network, x = network.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    return network, x


@pytest.mark.parametrize("seed", range(25))
def test_interleaved_training_is_the_dilated_network(seed: int) -> None:
    network, x = random_case(seed)
    if x[0, 0].numel() * len(x) == 1:
        pytest.skip("BatchNorm cannot train on one voxel")
    theirs, ours = copy.deepcopy(network).train(), network.train()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0]), plain(theirs, inputs[1])]
    for output in outputs:
        (output.square().sum() / output.numel()).backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-7, atol=1e-9)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=name)
    for (name, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("voxels_at_once", [500, 10**9])
@pytest.mark.parametrize("seed", range(25, 50))
def test_interleaved_inference_with_folded_normalization_is_the_dilated_network(
    seed: int, voxels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meshnet, "VOXELS_AT_ONCE", voxels_at_once)
    network, x = random_case(seed)
    network.eval()
    state = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(network, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(x), plain(network, x), rtol=1e-9, atol=1e-9)  # not folded: gradients may flow
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_dropout_drops_the_same_channels_of_whole_volumes() -> None:
    network, x = MeshNet(channels=6, dropout=0.4).double().train(), torch.rand(2, 1, 32, 16, 24, dtype=torch.float64)
    outputs = []
    for forward in (network, partial(plain, network)):
        torch.manual_seed(5)
        outputs.append(forward(x))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_it_holds_in_lower_precision_within_what_the_type_allows(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    network, x = MeshNet(channels=8).eval(), torch.rand(1, 1, 32, 32, 48)
    with torch.no_grad():
        exact = plain(copy.deepcopy(network).double(), x.double())
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert (network(x) - exact).abs().max() < tolerance * exact.abs().max()


@pytest.mark.slow  # compiling takes half a minute
@pytest.mark.parametrize("checkpoint_layers", [0, 3])
def test_compiled_it_is_the_same(checkpoint_layers: int) -> None:
    torch.manual_seed(0)
    network, x = MeshNet(channels=3, checkpoint_layers=checkpoint_layers), torch.rand(1, 1, 16, 16, 32)
    dilated = copy.deepcopy(network)
    network.compile()
    outputs = [network(x), plain(dilated, x)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for output in outputs:
        output.square().mean().backward()
    for (name, a), b in zip(network.named_parameters(), dilated.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, a), b in zip(network.named_buffers(), dilated.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), plain(dilated.eval(), x), rtol=1e-4, atol=1e-4)


def test_a_graph_for_export_is_plain_and_right_for_another_grid() -> None:
    network = MeshNet(channels=3).eval()
    side = torch.export.Dim("side", min=4, max=64)
    program = torch.export.export(network, (torch.rand(1, 1, 32, 32, 32),), dynamic_shapes=({2: side},))
    x = torch.rand(1, 1, 37, 32, 32)
    torch.testing.assert_close(program.module()(x), plain(network, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [5, 8, 13, 16])
@pytest.mark.parametrize("grid", [(32, 48, 32), (16, 16, 48), (64, 16, 32)])
def test_gradients_in_bfloat16_are_never_garbage(channels: int, grid: tuple[int, int, int]) -> None:
    """oneDNN's read memory that was never written: so it is filled with what would show."""
    torch.manual_seed(0)
    network, x = MeshNet(channels=channels).to(memory_format=torch.channels_last_3d), torch.rand(1, 1, *grid)
    for _ in range(3):
        network.zero_grad()
        for size in (10_000, 100_000, 1_000_000, 3_000_000):
            torch.full((size,), 1e30)
        with torch.autocast("cpu", torch.bfloat16):
            network(x).float().square().mean().backward()
        assert max(parameter.grad.abs().max() for parameter in network.parameters()) < 100


def test_dilations_that_are_no_powers_of_two_are_interleaved_too() -> None:
    torch.manual_seed(0)
    network, x = MeshNet(channels=3, dilations=(1, 3, 9, 6, 2)).double(), torch.rand(2, 1, 36, 27, 18).double()
    torch.testing.assert_close(network(x), plain(copy.deepcopy(network), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("checkpoint_layers", [1, 2, 3, 9, 20])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_layer_checkpointing_changes_no_gradient_and_no_statistic(checkpoint_layers: int, dropout: float) -> None:
    torch.manual_seed(0)
    kept = MeshNet(channels=3, dropout=dropout).double()
    again = MeshNet(channels=3, dropout=dropout, checkpoint_layers=checkpoint_layers).double()
    again.load_state_dict(kept.state_dict(), strict=True)
    x = torch.rand(2, 1, 32, 20, 16, dtype=torch.float64)
    for network in (kept, again):
        for seed in range(2):  # twice, so that running statistics move from where they moved to
            torch.manual_seed(seed)
            network(x).square().mean().backward()
    for key, value in kept.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    for (name, a), b in zip(kept.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12, msg=name)


def test_layer_checkpointing_keeps_fewer_activations() -> None:
    """Counted as the tensors that autograd is given to keep, outside of what checkpointing computes again."""
    kept = {}
    for layers in (0, 3):
        network, sizes = MeshNet(channels=4, checkpoint_layers=layers), {}
        pack = lambda tensor, sizes=sizes: sizes.update({tensor.untyped_storage().data_ptr(): tensor.nbytes}) or tensor  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(torch.rand(1, 1, 32, 32, 32))
        kept[layers] = sum(sizes.values()) / (4 * 4 * 32**3)  # in volumes of the network's width, float32
        del output
    assert kept[0] == pytest.approx(18, abs=1)  # of nine layers: what is convolved and what is normalized
    assert kept[3] < 10


def test_in_evaluation_nothing_is_checkpointed_and_the_answer_is_the_same() -> None:
    torch.manual_seed(0)
    network = MeshNet(channels=3, checkpoint_layers=2).eval()
    x = torch.rand(1, 1, 16, 16, 32)
    with torch.no_grad():
        expected = network(x)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_inference_does_not_change_its_input() -> None:
    network, x = MeshNet(channels=3).eval(), torch.randn(1, 1, 96, 96, 64)
    before = x.clone()
    with torch.no_grad():
        network(x)
    assert torch.equal(x, before)


def _train_on_one_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = MeshNet(channels=3, checkpoint_layers=3).double()
    parallel = nn.parallel.DistributedDataParallel(network)
    parallel(torch.load(f"{folder}/x.pt")[rank : rank + 1]).square().mean().backward()
    torch.save([p.grad for p in network.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # gloo aborts a process whose peer has gone
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # two processes that import torch
def test_distributed_gradients_are_the_mean_of_the_plain_networks(tmp_path: Path) -> None:
    x = torch.rand(2, 1, 32, 16, 20, dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    torch.multiprocessing.spawn(_train_on_one_rank, args=(str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    network = MeshNet(channels=3).double()
    for volume in x.split(1):
        (plain(network, volume).square().mean() / 2).backward()
    for rank in range(2):
        for gradient, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), network.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)
