"""Scans are turned to the orientation of the card: what was imported is evaluated and fine-tuned as it was meant."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EVALUATE, recipe, train_here

from scripts.networks.meshnet import MeshNet
from scripts.weights.card import network_from_card, read_card

SETTINGS = {"device": "cpu", "amp": False, "report": False, "num_workers": 0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A network unlike the recipe's that looks to the right and down, made for scans that lie in one way or another.

    What is bright, at a voxel and two beside it, is lesion.
    """
    definition = {"channels": 1, "dilations": [1], "act": "elu", "norm": None}
    state = {name: torch.zeros_like(value) for name, value in MeshNet(**definition).state_dict().items()}
    for voxel in ((1, 1, 1), (2, 1, 1), (1, 1, 0)):
        state["layers.0.0.weight"][(0, 0, *voxel)] = 1 / 3
    state["classifier.weight"][1], state["classifier.bias"][1] = 1, -0.5
    kernel = state["layers.0.0.weight"]
    kernels = {"RAS": kernel, "LIA": kernel.transpose(3, 4).flip(2, 3), "PSR": kernel}  # the last one is wrong
    paths = {}
    for orientation, kernel in kernels.items():
        paths[orientation] = tmp_path_factory.mktemp(orientation) / "mine.pt"
        torch.save({**state, "layers.0.0.weight": kernel.contiguous()}, paths[orientation])
        card = {"network_def": {"_target_": "scripts.networks.meshnet.MeshNet", **definition}}
        card |= {"intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}], "trained_on": ["0123456789abcdef"]}
        card |= {"spacing": [8.0] * 3, "spatial_size": [32] * 3, "orientation": orientation}
        paths[orientation].with_suffix(".json").write_text(json.dumps(card))
    return paths


def test_evaluation_turns_the_scans_as_the_network_wants_them(weights: dict, cohort_dir: Path, tmp_path: Path) -> None:
    dice = {}
    for orientation, path in weights.items():
        folder = tmp_path / orientation
        paths = {"dataset_dir": cohort_dir, "output_dir": folder, "init_weights": path}
        recipe("finetune", EVALUATE, **SETTINGS, **paths, ckpt_path=path).get_parsed_content("run")
        rows = csv.DictReader((folder / "metrics.csv").open())
        dice[orientation] = np.array([float(row["dice"]) for row in rows])
    assert dice["RAS"].max() > 0.2
    off = {orientation: np.median(np.abs(dice[orientation] - dice["RAS"])) for orientation in ("LIA", "PSR")}
    assert off["LIA"] < 0.001  # not zero: a grid of 8 mm begins at another corner of the scan
    assert off["PSR"] > 0.005, dice


def test_training_goes_on_from_the_weights_and_its_card_says_so(
    weights: dict, cohort_dir: Path, tmp_path: Path
) -> None:
    given = {"init_weights": weights["LIA"], "epochs": 1, "learning_rate": 1e-5, **SETTINGS}
    train_here(cohort_dir, tmp_path / "eval", "finetune", **given)
    card, before = read_card(str(tmp_path / "eval" / "model.pt")), read_card(str(weights["LIA"]))
    assert {k: card[k] for k in ("network_def", "orientation", "intensity")} == {
        k: before[k] for k in ("network_def", "orientation", "intensity")
    }
    assert card["ancestry"][0]["trained_on"] == ["0123456789abcdef"]
    state = torch.load(tmp_path / "eval" / "model.pt")
    network_from_card(card).load_state_dict(state)
    for name, value in torch.load(weights["LIA"]).items():
        torch.testing.assert_close(state[name], value, atol=1e-3, rtol=0)
        assert not torch.equal(state[name], value)


def test_the_grid_of_the_cohort_is_turned_with_the_scans() -> None:
    grid = "spacing=(1.0, 2.0, 3.0), spatial_size=(10, 20, 30)"
    parser = recipe(orientation="IAL", cohort=f"$__import__('types').SimpleNamespace({grid})")
    assert parser.get_parsed_content("spacing") == [3.0, 2.0, 1.0]
    assert parser.get_parsed_content("spatial_size") == [30, 20, 10]
