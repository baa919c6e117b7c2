"""finetune.json starts from released weights: what it changes, keeps and tells of where they came from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import EVALUATE, OVERLAYS, TRAIN, bundle, recipe, refused, train_here
from monai.bundle import ConfigParser

from scripts.weights.card import read_card

FINETUNE = str(OVERLAYS / "finetune.json")


@pytest.fixture(scope="module")
def start(trained: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of another cohort, with a card that says so."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copy(trained["root"] / "models" / "model.pt", folder / "theirs.pt")
    card = json.loads((trained["root"] / "models" / "model.json").read_text())
    scaling = [{"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "b_min": 0, "b_max": 1}]
    scaling[0] |= {"lower": 0, "upper": 99, "clip": True}
    card["network_def"] |= {"norm_adaptation": 0.35, "norm_shift_limit": 0.35}  # which training does not do
    (folder / "theirs.json").write_text(json.dumps({**card, "trained_on": ["ab" * 8], "intensity": scaling}))
    return folder / "theirs.pt"


def parsed(cohort_dir: Path, start: Path, **overrides: object) -> ConfigParser:
    return recipe("finetune", dataset_dir=cohort_dir, init_weights=start, **overrides)


@pytest.mark.slow
def test_the_command_starts_from_the_weights_and_its_card_keeps_their_ancestry(
    cohort_dir: Path, start: Path, tmp_path: Path
) -> None:
    arguments = ["--dataset_dir", cohort_dir, "--init_weights", start, "--output_dir", tmp_path]
    configs = f"['{TRAIN}','{FINETUNE}']"
    result = bundle("training", "--config_file", configs, *arguments, "--epochs", 1, "--learning_rate", 1e-9)
    assert result.returncode == 0, result.stderr[-2000:]
    theirs, ours = torch.load(start), torch.load(tmp_path / "model.pt")
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)
    card, first = read_card(str(tmp_path / "model.pt")), read_card(str(start))
    assert {**card["network_def"], "norm_adaptation": 0.35, "norm_shift_limit": 0.35} == first["network_def"]
    assert "norm_adaptation" not in card["network_def"]
    assert card["intensity"] == first["intensity"]
    assert [parent["weights"] for parent in card["ancestry"]] == ["theirs.pt"]
    assert card["ancestry"][0]["trained_on"] == ["ab" * 8]

    configs = f"['{TRAIN}','{FINETUNE}','{EVALUATE}']"  # the network is the same with the same overlays
    result = bundle("evaluating", "--config_file", configs, *arguments)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_frozen_layers_and_the_statistics_do_not_move(cohort_dir: Path, start: Path, tmp_path: Path) -> None:
    parser = train_here(cohort_dir, tmp_path, "finetune", init_weights=start, frozen_layers=2, epochs=1)
    theirs, ours = torch.load(start), parser.get_parsed_content("network").state_dict()
    moved = {key for key in theirs if not torch.equal(ours[key], theirs[key])}
    assert not [key for key in moved if key.startswith(("layers.0.", "layers.1.")) or "running" in key]
    assert {key for key in theirs if key.endswith("weight") and key > "layers.2"} <= moved


@pytest.mark.parametrize("frozen_layers", [-1, 10])
def test_more_frozen_layers_than_there_are_is_one_line(cohort_dir: Path, start: Path, frozen_layers: int) -> None:
    with refused(f"frozen_layers must be an integer from 0 to 9, got {frozen_layers}"):
        parsed(cohort_dir, start, frozen_layers=frozen_layers).get_parsed_content("train#trainer")


def test_the_grid_and_the_network_are_those_of_the_weights(cohort_dir: Path, start: Path, tmp_path: Path) -> None:
    other = tmp_path / "theirs.pt"
    shutil.copy(start, other)
    card = json.loads(start.with_suffix(".json").read_text())
    other.with_suffix(".json").write_text(json.dumps({**card, "spacing": [12.0] * 3, "spatial_size": [16, 32, 16]}))
    parser = parsed(cohort_dir, other, cache="disk", cache_dir=str(tmp_path / "cache"))
    item = parser.get_parsed_content("train#dataset")[0]
    assert item["image"].shape == (1, 16, 32, 16)
    assert item["image"].pixdim.tolist() == [12, 12, 12]
    assert len(parser.get_parsed_content("network").classifier.weight[0]) == 8  # as the weights, not as train.json


@pytest.mark.parametrize(
    ("weights", "line"),
    [("nowhere.pt", "nowhere.pt: no such file; train first, or give the weights with"), ("bare.pt", "bare.json: ")],
)
def test_weights_that_cannot_be_started_from_are_one_line(
    cohort_dir: Path, start: Path, tmp_path: Path, weights: str, line: str
) -> None:
    shutil.copy(start, tmp_path / "bare.pt")
    with refused(line):
        parsed(cohort_dir, tmp_path / weights).get_parsed_content("train#trainer")
