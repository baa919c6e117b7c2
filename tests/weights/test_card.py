"""A card rebuilds its network and runs no code; each of its keys has a rule."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from weights.saved import CARD, MESHNET, save

from scripts.common.errors import InputError
from scripts.weights.card import intensity_from_card, network_from_card, read_card
from scripts.weights.weights import Weights


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"spacing": [1, 0, 1]}, r"spacing\[1\] 0 is less than or equal to the minimum of 0"),
        ({"spacing": [1, True, 1]}, r"spacing\[1\] True is not of type 'number'"),
        ({"spatial_size": [8, 8.0, 8]}, r"spatial_size\[1\] 8.0 is not of type 'integer'"),
        ({"spatial_size": [8, 8]}, r"spatial_size \[8, 8\] is too short"),
        ({"network_def": {"channels": 3}}, r"network_def '_target_' is a required property"),
        ({"intensity": "none"}, r"intensity 'none' is not of type 'array'"),
        ({"threshold": 1}, r"threshold 1 is greater than or equal to the maximum of 1"),
    ],
)
def test_each_key_of_a_card_has_its_rule(tmp_path: Path, change: dict, line: str) -> None:
    save(tmp_path, {**CARD, **change})
    with pytest.raises(InputError, match=f"^{tmp_path}/model.json: {line}; training writes the card") as error:
        read_card(str(tmp_path / "model.pt"))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", json.dumps({"channels": 2})])
def test_a_missing_or_incomplete_card_is_told_by_its_file(tmp_path: Path, text: str | None) -> None:
    save(tmp_path)
    (tmp_path / "model.json").unlink()
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError, match=r"model.json: .*; training writes the card beside its weights"):
        read_card(str(tmp_path / "model.pt"))


def test_a_card_without_weights_says_to_train_first(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(CARD))
    with pytest.raises(InputError, match=r"model.pt: no such file; train first"):
        read_card(str(tmp_path / "model.pt"))


def test_a_card_of_version_0_4_rebuilds_its_network(tmp_path: Path) -> None:
    save(tmp_path, {"channels": 2, "spacing": [3.0] * 3, "spatial_size": [64, 80, 64], "cohort": "x", "fold": 0})
    card = read_card(str(tmp_path / "model.pt"))
    network_from_card(card).load_state_dict(torch.load(tmp_path / "model.pt"))
    image = torch.linspace(-3, 5, 8).reshape(1, 2, 2, 2)
    scaled = intensity_from_card(card)({"image": image})["image"]
    assert torch.allclose(torch.as_tensor(scaled), (image + 3) / 8)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "models").glob("*.pt")))
def test_released_weights_load_into_the_network_of_their_card(name: str) -> None:
    path = ROOT / "models" / name
    network = network_from_card(read_card(str(path)))
    network.load_state_dict(torch.load(path))
    assert network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)


def test_a_network_of_any_arguments_is_rebuilt(tmp_path: Path) -> None:
    odd = {"in_channels": 2, "out_channels": 3, "channels": 4, "dilations": [1, 3], "dropout": 0.25}
    network = network_from_card({"network_def": {"_target_": "scripts.networks.meshnet.MeshNet", **odd}})
    assert [layer[0].dilation for layer in network.layers] == [(1, 1, 1), (3, 3, 3)]
    assert network(torch.zeros(1, 2, 6, 6, 6)).shape == (1, 3, 6, 6, 6)
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout3d)] == [0.25, 0.25]
    theirs = {"_target_": "SegResNet", "spatial_dims": 3, "init_filters": 8, "out_channels": 2}
    assert type(network_from_card({"network_def": theirs})).__name__ == "SegResNet"


@pytest.mark.parametrize(
    "definition",
    [
        {"_target_": "os.system", "command": "touch /tmp/owned"},
        {"_target_": "monai.apps.download_url", "url": "x"},
        {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
        {"_target_": "NoSuchNet"},
        {"_target_": "scripts.networks.meshnet.MeshNet", "chanels": 3},
        {"_target_": "scripts.networks.meshnet.MeshNet", "channels": "$__import__('os').system('touch /tmp/owned')"},
    ],
)
def test_a_card_builds_networks_and_nothing_else(definition: dict) -> None:
    with pytest.raises(InputError, match=r"^card: network_def: .*(refused|cannot be built)"):
        network_from_card({"network_def": definition})
    assert not Path("/tmp/owned").exists()


def test_released_weights_of_an_earlier_version_are_told_what_there_is_now() -> None:
    with pytest.raises(InputError, match=r"model_16.pt: no such file; there are .*model.pt.*, see models/README.md$"):
        read_card(str(ROOT / "models" / "model_16.pt"))


def test_weights_may_be_copied_with_their_card(tmp_path: Path) -> None:
    for suffix in ("pt", "json"):
        shutil.copy(ROOT / "models" / f"model_5.{suffix}", tmp_path / f"mine.{suffix}")
    assert read_card(str(tmp_path / "mine.pt"))["spacing"] == read_card(str(ROOT / "models" / "model_5.pt"))["spacing"]


def test_ancestors_are_known_by_their_content_oldest_first(tmp_path: Path) -> None:
    first = {"weights": "first.pt", "sha256": "0" * 64, "trained_on": ["a"]}
    save(tmp_path, {**CARD, "ancestry": [first], "cohort": "ours", "simulated": True, "trained_on": ["b"], "seed": 3})
    digest = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    second = {"weights": "model.pt", "sha256": digest, "cohort": "ours", "simulated": True, "trained_on": ["b"]}
    assert Weights(str(tmp_path / "model.pt")).ancestry == [first, second]


def test_a_network_of_a_card_can_be_built_with_other_arguments() -> None:
    network = network_from_card(CARD, dropout=0.5)
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout3d)] == [0.5] * 9
    with pytest.raises(InputError, match=r"^card: network_def: MeshNet cannot be built .*dropout must be in"):
        network_from_card(CARD, dropout=2)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"intensity": [{"_target_": "LoadImaged", "keys": "image", "reader": "os.system"}]},
            ".*LoadImaged is none of",
        ),
        ({"intensity": [{"_target_": "SaveImaged", "keys": "image", "output_dir": "X"}]}, ".*SaveImaged is none of"),
        ({"intensity": [{"_target_": "Lambdad", "keys": "image", "func": "os.system"}]}, ".*Lambdad is none of"),
        ({"intensity": [{"_target_": "ScaleIntensityd", "keys": "/etc/passwd"}]}, "keys '/etc/passwd': expected"),
        ({"intensity": [{"_target_": "ScaleIntensityd", "keys": "image", "dtype": "os.x"}]}, "dtype 'os.x': expected"),
        ({"network_def": {"_target_": "HoVerNet", "pretrained_url": "http://x"}}, ".*HoVerNet is none of"),
        ({"network_def": {"_target_": "FlexibleUNet", "pretrained": True}}, ".*FlexibleUNet is none of"),
        ({"network_def": {**MESHNET, "act": ["relu", {"_target_": "os"}]}}, "act .*: expected numbers, words"),
        ({"network_def": {"_target_": "scripts.networks.meshnet.nn.Conv3d"}}, ".*nn.Conv3d is none of"),
        ({"network_def": {"_target_": "scripts.networks.meshnet.Callable"}}, ".*Callable is none of"),
    ],
)
def test_a_card_names_known_classes_with_plain_values_only(tmp_path: Path, change: dict, line: str) -> None:
    save(tmp_path, {**CARD, **change})
    card, (key,) = read_card(str(tmp_path / "model.pt")), change
    with pytest.raises(InputError, match=f"^card: {key}: {line}.*; refused$"):
        {"intensity": intensity_from_card, "network_def": network_from_card}[key](card)


def test_a_trainings_state_is_weights_with_the_card_within(tmp_path: Path) -> None:
    weights = save(tmp_path)
    torch.save({"network": weights, "optimizer": {}, "card": CARD}, tmp_path / "checkpoint_last.pt")
    (tmp_path / "model.json").unlink()
    used = Weights(str(tmp_path / "checkpoint_last.pt"))
    assert used.card == {"orientation": "RAS", **CARD}
    loaded = used.network().state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)
    torch.save({"network": weights}, tmp_path / "checkpoint_last.pt")  # of a version before
    with pytest.raises(InputError, match=r"checkpoint_last.json: cannot be read"):
        read_card(str(tmp_path / "checkpoint_last.pt"))


def test_a_folder_of_weights_is_taken_without_the_last_epochs(tmp_path: Path) -> None:
    save(tmp_path)
    for suffix in (".pt", ".json"):
        shutil.copy(tmp_path / f"model{suffix}", tmp_path / f"model_last{suffix}")
    assert [Path(path).name for path in Weights(str(tmp_path)).members] == ["model.pt"]
