"""A name chooses from a menu: what it puts in, what stays the user's, and what is said of a wrong one."""

from pathlib import Path

import pytest
from conftest import EVALUATE, MENUS, OVERLAYS, ROOT, refused
from conftest import checked as config
from monai.bundle import ConfigParser

KINDS = ("augmentation", "loss", "network", "optimizer", "schedule")
ENTRIES = [(kind, name) for kind in KINDS for name in MENUS[kind]]


def resolved(parser: ConfigParser, key: str) -> object:
    return parser.get_parsed_content("config").resolved(key)


def test_the_defaults_are_the_recipe_as_it_stands() -> None:
    assert {kind: config().get(f"{kind}_name") for kind in KINDS} == {kind: MENUS[kind][0] for kind in KINDS}
    parser = config()
    assert [type(parser.get_parsed_content(key)).__name__ for key in ("loss_def", "optimizer", "network_def")] == [
        "WeightedCrossEntropyLoss", "AdamW", "MeshNet",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_a_line_with_the_choices(kind: str) -> None:
    with refused(f"^{kind}_name 'adamm': expected one of {', '.join(MENUS[kind])}$"):
        config(**{f"{kind}_name": "adamm"})


def test_an_entry_replaces_a_block_and_what_was_changed_in_it_stays_changed() -> None:
    parser = config(optimizer_name="sgd", **{"optimizer#momentum": 0.8, "optimizer#weight_decay": 0.5})
    found = resolved(parser, "optimizer")
    assert {key: value for key, value in found.items() if key != "params"} == {
        "_target_": "torch.optim.SGD",
        "lr": 0.001,
        "weight_decay": 0.5,
        "momentum": 0.8,
        "nesterov": True,
    }
    group = parser.get_parsed_content("optimizer").param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.8, 0.5, True)


def test_values_of_an_entry_are_overrides(caplog: pytest.LogCaptureFixture) -> None:
    assert config(loss_name="focal").get_parsed_content("loss_def").gamma == 2.0
    assert config(loss_name="focal", focal_gamma=0.5).get_parsed_content("loss_def").gamma == 0.5
    with refused("^focal_gamma 'big': expected a finite number"):
        config(loss_name="focal", focal_gamma="big")
    with refused("focal_gama: nothing reads this key, did you mean focal_gamma"):
        config(loss_name="focal", focal_gama=0.5)
    assert not caplog.text


def test_a_block_of_the_users_own_stands_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    own = {"_target_": "DiceLoss", "softmax": True, "to_onehot_y": True}
    assert config(loss_def=own, loss_name="focal").get("loss_def") == own
    assert "loss_name focal: loss_def is given by the config itself, which stands" in caplog.text


def test_augmentation_of_a_menu_comes_before_that_of_an_overlay() -> None:
    own = {"_target_": "RandZoomd", "keys": "image"}
    parser = config(augmentation_name="light", **{"train#random_transforms": [own]})
    parser.update({"spatial_size": [8, 8, 8], "spacing": [8.0, 8.0, 8.0]})
    transforms = parser.get_parsed_content("train#preprocessing").transforms
    assert [type(transform).__name__ for transform in transforms[-4:]] == [
        "RandFlipd", "RandGaussianNoised", "RandAdjustContrastd", "RandZoomd",
    ]  # fmt: skip


def test_what_quotes_a_replaced_block_follows_it(cohort_dir: Path) -> None:
    parser = config(schedule_name="plateau", dataset_dir=str(cohort_dir))
    assert "PlateauSchedule" in [type(handler).__name__ for handler in parser.get_parsed_content("train#handlers")]


def test_the_card_names_the_chosen_network_and_evaluation_takes_it_from_the_card() -> None:
    card = config(network_name="segresnet", init_filters=16).get_parsed_content("config").resolved("network_def")
    assert card["_target_"] == "SegResNet"
    assert card["init_filters"] == 16
    evaluation = config(EVALUATE, network_name="segresnet")
    assert evaluation.get("network_def") == {"_target_": "$@weights.network"}


# What the paper's Table 1 says of each network's size, and what MONAI's default of that name has where it differs.
PARAMETERS = {"meshnet": 56194, "segresnet": 1176186, "unet": 1979610, "vnet": 45597898, "swin_unetr": 18346844}


@pytest.mark.parametrize("name", PARAMETERS)
def test_networks_have_the_sizes_of_the_papers_table(name: str) -> None:
    pytest.importorskip("einops", reason="SwinUNETR needs einops") if "unetr" in name else None
    network = config(network_name=name).get_parsed_content("network_def")
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_menus_are_complete_and_they_and_the_overlays_are_named_in_the_docs() -> None:
    page = (ROOT / "docs" / "techniques.md").read_text()
    assert set(MENUS) == set(KINDS)
    assert [name for _, name in ENTRIES if f"`{name}`" not in page] == []
    assert [path.name for path in OVERLAYS.glob("*.json") if f"`{path.name}`" not in page] == []


def test_what_the_choice_does_not_read_is_said_and_may_be_searched_over(caplog: pytest.LogCaptureFixture) -> None:
    config(channels=5, dropout=0.1)
    assert not caplog.text
    config(network_name="unet", channels=5, dropout=0.1)
    assert caplog.messages == ["channels 5: has no effect, nothing that was chosen reads it"]
    caplog.clear()
    config(loss_name="cross_entropy", focal_gamma=3.0)  # as a search over names and their arguments gives it
    assert caplog.messages == ["focal_gamma 3.0: has no effect, nothing that was chosen reads it"]


def test_a_block_that_an_overlay_replaces_is_not_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("finetune", "simulated_patients"):
        config(name)
    assert "has no effect" not in caplog.text


def test_a_value_that_nobody_gave_is_not_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    config(schedule_name="plateau")
    config("mix")
    config("simulated_patients", dataset_dir="/data/mine")
    assert caplog.messages == []
    config(soft_labels=True)
    assert caplog.messages == ["soft_labels True: has no effect, nothing that was chosen reads it"]
