"""Interleaved execution is the dilated network: answers, gradients and statistics, whatever it is made of."""

import copy
import random
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from torch import nn

from scripts.networks import interleaved
from scripts.networks.interleaved import Convolve, Merge, Split, plan
from scripts.networks.meshnet import MeshNet

KINDS = [
    {},
    {"norm": None, "act": "elu"},
    {"norm": "instance", "act": "leakyrelu"},
    {"norm": ("instance", {"affine": True, "track_running_stats": True}), "act": "gelu"},
    {"norm": ("batch", {"track_running_stats": False, "affine": False}), "act": "prelu"},
]


def plain(network: MeshNet, x: torch.Tensor) -> torch.Tensor:
    """The network as its modules say, dilated convolutions and all: what the interleaved execution must equal."""
    for layer in network.layers:
        x = layer(x)
    return network.classifier(x)


def random_case(seed: int, kind: dict) -> tuple[MeshNet, torch.Tensor]:
    """A network with statistics, and an input, of random width, batch size, layout, dilations, grid (odd sides too)."""
    torch.manual_seed(seed)
    pick = random.Random(seed)
    dilations = pick.choice([(1, 2, 4, 8, 16, 16, 8, 4, 2), (1, 2, 4, 2), (3, 1, 6, 2), (2, 5, 10)])
    network = MeshNet(pick.randint(1, 3), channels=pick.randint(1, 4), dilations=dilations, **kind).double()
    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.ndim == 1 and tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    side = lambda: pick.choice([pick.randint(1, 20), 8 * pick.randint(1, 3), 16, 20])  # noqa: E731
    x = torch.rand(pick.randint(1, 3), network.layers[0][0].in_channels, side(), side(), 2 * side()).double()
    if pick.random() < 0.5:
        network, x = network.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    return network, x


def assert_trains_alike(network: MeshNet, x: torch.Tensor) -> None:
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


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_interleaved_training_is_the_dilated_network(seed: int, kind: dict) -> None:
    assert_trains_alike(*random_case(10 * KINDS.index(kind) + seed, kind))


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("n_volumes", [1, 2])
def test_gradients_in_float32_are_those_in_float64(n_volumes: int, norm: str) -> None:
    """As trained, channels last: there torch 2.13.0's instance normalization of one volume is wrong."""
    torch.manual_seed(0)
    network = MeshNet(channels=4, norm=norm, act="elu").to(memory_format=torch.channels_last_3d)
    exact, x = copy.deepcopy(network).double(), torch.rand(n_volumes, 1, 32, 32, 32)
    network(x).square().mean().backward()
    plain(exact, x.double()).square().mean().backward()
    for ours, theirs in zip(network.layers, exact.layers, strict=True):
        error = (ours[0].weight.grad - theirs[0].weight.grad).abs().max()
        assert error < 1e-3 * theirs[0].weight.grad.abs().max()


def test_dilations_that_are_no_powers_of_two_are_interleaved_too() -> None:
    network, x = MeshNet(channels=3, dilations=(1, 3, 9, 6, 2)).double(), torch.rand(2, 1, 36, 27, 18).double()
    assert_trains_alike(network, x)


@pytest.mark.parametrize("voxels_at_once", [200, 10**9])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_interleaved_inference_is_the_dilated_network(
    seed: int, kind: dict, voxels_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", voxels_at_once)
    network, x = random_case(100 + 10 * KINDS.index(kind) + seed, kind)
    network.eval()
    state, before = copy.deepcopy(network.state_dict()), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(network, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(network(x), plain(network, x), rtol=1e-9, atol=1e-9)  # not folded: gradients may flow
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(x, before)


def test_the_plan_splits_merges_and_takes_from_the_dilation_what_it_split() -> None:
    k, one = (2, 2, 2), (1, 1, 1)
    dense = lambda i: Convolve(i, one, one)  # noqa: E731
    last = Convolve(3, one, (0, 0, 0))
    assert plan([one, k, one], (8, 8, 8)) == [dense(0), Split(k), dense(1), Merge(k), dense(2), last]
    nested = plan([(2, 2, 2), (4, 4, 4), (4, 4, 4)], (16, 16, 16))
    assert nested == [Split(k), dense(0), Split(k), dense(1), dense(2), last, Merge(k), Merge(k)]
    # 12 voxels dilated by 4 become 3 parts of 4, 9 dilated by 4 cannot be split, 6 dilated by 2 would be shorter than 4
    assert plan([(4, 4, 2)], (12, 9, 6))[:2] == [Split((2, 1, 1)), Convolve(0, (2, 4, 2), (2, 4, 2))]


@pytest.mark.parametrize("dilation", [1, 2, 3, 8, 16, 30])
def test_no_part_is_shorter_than_four_voxels_and_all_are_equal(dilation: int) -> None:
    for side in range(1, 70):
        first, *_ = plan([(dilation, 1, 1)], (side, 5, 5))
        if isinstance(first, Split):
            assert first.k[0] > 1
            assert side % first.k[0] == dilation % first.k[0] == 0
            assert side // first.k[0] >= 4


def test_a_large_volume_goes_through_inference_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, sizes = MeshNet(channels=3).eval(), torch.rand(1, 1, 32, 32, 32), []
    convolve = lambda x, *args, **kw: sizes.append(x.shape[1] * x[:, 0].numel()) or nn.functional.conv3d(x, *args, **kw)  # noqa: E731
    monkeypatch.setattr(interleaved, "conv3d", convolve)
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", 5000)
    with torch.inference_mode():
        answer = network(x)
    assert max(sizes) <= 34**3  # the padded input is the largest; nothing has the width and the whole grid
    torch.testing.assert_close(answer, plain(network, x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("device", "in_parts"), [("cpu", True), ("meta", False)])
def test_only_a_cpu_takes_a_volume_that_fits_in_parts(
    device: str, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, x, calls = MeshNet(channels=3).eval().to(device), torch.empty(1, 1, 32, 32, 32, device=device), []
    convolve = lambda *args, **kw: calls.append(args) or nn.functional.conv3d(*args, **kw)  # noqa: E731
    monkeypatch.setattr(interleaved, "conv3d", convolve)
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", 5000)
    steps = plan([layer[0].dilation for layer in network.layers], x.shape[2:])
    with torch.inference_mode():
        assert interleaved.infer(x, steps, interleaved.fold(network, "cpu")).shape == (1, 2, 32, 32, 32)
    assert (len(calls) > len(network.layers) + 1) is in_parts


@pytest.mark.parametrize("dilations", [(2,), (2, 1), (2, 4, 1), (4, 2)])
def test_the_first_layer_may_be_the_last_of_its_part(dilations: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interleaved, "VOXELS_AT_ONCE", 20)
    network, x = MeshNet(channels=3, dilations=dilations).double().eval(), torch.rand(1, 1, 16, 16, 16).double()
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(network, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_metadata_goes_past_the_layers(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = MeshNet(channels=2).train(training)
    x, affine = torch.rand(1, 1, 32, 32, 32), torch.diag(torch.tensor([6.0, 6.0, 6.0, 1.0]))[None]
    image = MetaTensor(x, affine=affine, meta={"filename_or_obj": ["a.nii.gz"]})
    image.is_batch = True
    calls, count = [], MetaTensor.update_meta
    monkeypatch.setattr(MetaTensor, "update_meta", lambda *args: calls.append(args[1]) or count(*args))
    with torch.set_grad_enabled(training):
        out, expected = network(image), network(x)
    assert len(calls) < 5  # each layer's dozen of calls would sort it out for hundreds of sub-volumes
    assert torch.equal(out.as_tensor(), expected)
    assert out.requires_grad is training
    (one,) = decollate_batch(out)
    assert torch.equal(one.affine, affine[0].double())
    assert one.meta["filename_or_obj"] == "a.nii.gz"


def test_dropout_drops_the_same_channels_of_whole_volumes() -> None:
    network, x = MeshNet(channels=6, dropout=0.4).double().train(), torch.rand(2, 1, 32, 16, 24, dtype=torch.float64)
    outputs = []
    for forward in (network, lambda x: plain(network, x)):
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "arguments"),
    [
        ("aot_eager", {"dilations": (1, 4, 8, 2), "checkpoint_layers": 2}),  # all but the generation of code
        ("aot_eager", {"dilations": (1, 4, 2), "norm": "instance", "act": "elu"}),
        ("inductor", {"dilations": (1, 2), "checkpoint_layers": 1}),
    ],
)
def test_compiled_it_is_the_same(backend: str, arguments: dict) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    network, x = MeshNet(channels=3, **arguments), torch.rand(1, 1, 16, 16, 32)
    dilated = copy.deepcopy(network)
    network.compile(backend=backend)
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


@pytest.mark.parametrize(("channels", "grid"), [(5, (32, 48, 32)), (8, (16, 16, 48)), (13, (64, 16, 32))])
def test_gradients_in_bfloat16_are_never_garbage(channels: int, grid: tuple[int, int, int]) -> None:
    """oneDNN's read memory that was never written: so it is filled with what would show."""
    torch.manual_seed(0)
    network, x = MeshNet(channels=channels).to(memory_format=torch.channels_last_3d), torch.rand(1, 1, *grid)
    for _ in range(2):
        network.zero_grad()
        for size in (10_000, 100_000, 1_000_000, 3_000_000):
            torch.full((size,), 1e30)
        with torch.autocast("cpu", torch.bfloat16):
            network(x).float().square().mean().backward()
        assert max(parameter.grad.abs().max() for parameter in network.parameters()) < 100


@pytest.mark.parametrize("checkpoint_layers", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("kind", [{}, {"dropout": 0.4}, KINDS[2] | {"dropout": 0.4}, KINDS[3]], ids=str)
def test_layer_checkpointing_changes_no_gradient_and_no_statistic(checkpoint_layers: int, kind: dict) -> None:
    torch.manual_seed(0)
    arguments = {"channels": 3, "dilations": (1, 2, 4, 8, 2), **kind}
    kept, again = (MeshNet(**arguments, checkpoint_layers=layers).double() for layers in (0, checkpoint_layers))
    again.load_state_dict(kept.state_dict(), strict=True)
    x = torch.rand(2, 1, 16, 20, 8, dtype=torch.float64)
    for network in (kept, again):
        for seed in range(2):  # twice, so that running statistics move from where they moved to
            torch.manual_seed(seed)
            network(x).square().mean().backward()
        with torch.no_grad():
            network(x)  # as for statistics estimated after training
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


def _train_on_one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # OpenMP's others were not forked
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = MeshNet(channels=3, checkpoint_layers=3).double()
    parallel = nn.parallel.DistributedDataParallel(network)
    parallel(torch.load(f"{folder}/x.pt")[rank : rank + 1]).square().mean().backward()
    torch.save([p.grad for p in network.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.barrier()  # gloo aborts a process whose peer has gone
    torch.distributed.destroy_process_group()


def test_distributed_gradients_are_the_mean_of_the_plain_networks(tmp_path: Path) -> None:
    x = torch.rand(2, 1, 32, 16, 20, dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    torch.multiprocessing.start_processes(_train_on_one_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    torch.manual_seed(0)
    network = MeshNet(channels=3).double()
    for volume in x.split(1):
        (plain(network, volume).square().mean() / 2).backward()
    for rank in range(2):
        for gradient, parameter in zip(torch.load(tmp_path / f"{rank}.pt"), network.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)
