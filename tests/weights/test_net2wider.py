"""A wider network finds what the narrow one does, and learns what that could not."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, command

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.weights import net2wider
from scripts.weights.card import lineage, network_from_card, read_card

RELEASED = ROOT / "models" / "model_5.pt"


def narrow_network(**arguments: object) -> MeshNet:
    """A MeshNet-3 as if trained: normalizations are no identities."""
    torch.manual_seed(0)
    network = MeshNet(**{"channels": 3, "out_channels": 3, "dilations": [1, 2, 1], **arguments}).double()
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and value.ndim == 1:
            torch.nn.init.uniform_(value, 0.5, 2.0) if "running_var" in name else torch.nn.init.normal_(value)
    return network.eval()


def widened(network: MeshNet, channels: int, **arguments: object) -> MeshNet:
    wide = MeshNet(**{"channels": channels, "out_channels": 3, "dilations": [1, 2, 1], **arguments}).double().eval()
    wide.load_state_dict(net2wider.wider(network.state_dict(), channels, torch.Generator().manual_seed(1)))
    return wide


@pytest.mark.parametrize("channels", [4, 11])
@pytest.mark.parametrize(
    "arguments",
    [
        {"dropout": 0.1},
        {"norm": None, "act": "elu"},
        {"norm": ["instance", {"affine": True}], "act": "prelu"},
        {"in_channels": 2},
        {"out_channels": 1, "norm": None},
    ],
)
def test_wider_network_computes_what_the_narrow_one_does(channels: int, arguments: dict) -> None:
    network = narrow_network(**arguments)
    wide = widened(network, channels, **arguments)
    x = torch.rand(2, arguments.get("in_channels", 1), 9, 8, 7, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(wide.plain(x), network.plain(x))
    assert wide.layers[0][0].out_channels == channels


def test_one_channel_and_one_class_are_enough() -> None:
    narrow = narrow_network(channels=1, out_channels=1)
    wide, x = widened(narrow, 3, out_channels=1), torch.rand(1, 1, 6, 6, 6, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(wide.plain(x), narrow.plain(x))


def test_training_makes_different_channels_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    def distance_of_copies(noise: float) -> float:
        monkeypatch.setattr(net2wider, "NOISE", noise)
        wide = widened(narrow_network(), 6).train()
        optimizer, x = torch.optim.AdamW(wide.parameters(), 0.01), torch.rand(1, 1, 9, 8, 7, dtype=torch.float64)
        target = torch.randint(3, (1, 9, 8, 7), generator=torch.Generator().manual_seed(2))
        for _ in range(5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(wide.plain(x), target).backward()
            optimizer.step()
        kernels = wide.layers[0][0].weight.detach().flatten(1)  # of the 6 channels at least 3 are copies
        return torch.pdist(kernels).sort().values[:3].max().item()

    assert distance_of_copies(0.0) < 1e-9
    assert distance_of_copies(0.25) > 1e-3


@pytest.fixture(scope="module")
def wide_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released weights of 5 channels with 8, by the command and from another directory."""
    folder = tmp_path_factory.mktemp("wide")
    command(folder, "widen", "--ckpt_path", RELEASED, "--channels", 8, "--output", "eval/8.pt")
    assert sorted(p.name for p in folder.rglob("*")) == ["8.json", "8.pt", "eval"]
    return folder / "eval" / "8.pt"


def test_command_writes_weights_with_a_card_that_find_the_same(wide_5: Path) -> None:
    networks = {}
    for path in (RELEASED, wide_5):
        networks[path] = network_from_card(read_card(str(path))).eval()
        networks[path].load_state_dict(torch.load(path))
    x = torch.rand(1, 1, 48, 40, 33)
    with torch.inference_mode():
        torch.testing.assert_close(networks[wide_5](x), networks[RELEASED](x), atol=1e-4, rtol=1e-4)


def test_card_says_what_the_weights_come_from_and_no_figures_of_others(wide_5: Path) -> None:
    card, theirs = read_card(str(wide_5)), read_card(str(RELEASED))
    assert card["network_def"] == {**theirs["network_def"], "channels": 8}
    assert card["ancestry"][-1]["weights"] == "model_5.pt"
    assert card["simulated"] is True
    assert [card[key] for key in ("about", "threshold")] == [theirs[key] for key in ("about", "threshold")]
    assert card["widened"] == {"from": 5, "seed": 0}
    assert not {"metrics", "dice_by_volume", "command", "seed"} & {*card}


def test_card_keeps_what_is_true_of_the_wider_network_too(tmp_path: Path) -> None:
    card = read_card(str(ROOT / "models" / "model_26.pt"))
    assert card["network_def"]["norm_adaptation"]
    card |= {"classes": ["background", "lesion"], "trained_on": ["0123"], "teachers": [{"trained_on": ["4567"]}]}
    torch.save(torch.load(ROOT / "models" / "model_26.pt"), tmp_path / "mine.pt")
    (tmp_path / "mine.json").write_text(json.dumps(card))
    net2wider.widen(str(tmp_path / "mine.pt"), 27, str(tmp_path / "wide.pt"))
    found = read_card(str(tmp_path / "wide.pt"))
    kept = ("trained_on", "classes", "anatomies", "lesion_shapes", "fold", "intensity", "spacing")
    assert {key: found[key] for key in kept} == {key: card[key] for key in kept}
    assert not {"norm_adaptation", "norm_shift_limit"} & {*found["network_def"]}
    assert sum({"4567"} <= {*one.get("trained_on", [])} for one in lineage(found)) == 1


def refused(folder: Path, **arguments: object) -> str:
    """The line for ``arguments`` beside which others are right."""
    before = sorted(folder.iterdir())
    right = {"ckpt_path": str(RELEASED), "channels": 8, "output": str(folder / "wide.pt")}
    with pytest.raises(InputError) as caught:
        net2wider.widen(**right | arguments)
    assert sorted(folder.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("channels", [5, 3, "eight", 8.0, True])
def test_a_width_that_is_none_or_not_above_is_a_line(channels: object, tmp_path: Path) -> None:
    line = f"--channels {channels}: expected an integer above 5, the width of {RELEASED}"
    assert refused(tmp_path, channels=channels) == line


@pytest.mark.parametrize("seed", ["abc", 1.5, -1, 2**70])
def test_a_seed_that_is_none_is_a_line(seed: object, tmp_path: Path) -> None:
    assert refused(tmp_path, seed=seed) == f"--seed {seed}: expected an integer of at least 0"


def test_weights_that_cannot_be_made_wider_are_a_line(tmp_path: Path) -> None:
    assert "none.pt: no such file" in refused(tmp_path, ckpt_path=str(tmp_path / "none.pt"))
    card = read_card(str(RELEASED))
    unet = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 2], "strides": [1]}
    torch.save({}, tmp_path / "unet.pt")
    (tmp_path / "unet.json").write_text(json.dumps({**card, "network_def": {"_target_": "UNet", **unet}}))
    assert "unet.pt: of a UNet; only a MeshNet" in refused(tmp_path, ckpt_path=str(tmp_path / "unet.pt"))
    mixing = {**card["network_def"], "act": ["softmax", {"dim": 1}]}
    torch.save(torch.load(RELEASED), tmp_path / "mixing.pt")
    (tmp_path / "mixing.json").write_text(json.dumps({**card, "network_def": mixing}))
    assert "its activation mixes channels" in refused(tmp_path, ckpt_path=str(tmp_path / "mixing.pt"))


def test_nothing_is_replaced(tmp_path: Path) -> None:
    assert "ends with .pt" in refused(tmp_path, output=str(tmp_path / "wide"))
    assert "--output 8: expected a name" in refused(tmp_path, output=8)
    (tmp_path / "wide.json").write_text("mine")
    assert "wide.json: is there already" in refused(tmp_path)
    assert (tmp_path / "wide.json").read_text() == "mine"
