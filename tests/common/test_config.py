"""A config says what it holds: what was chosen, what was given, and what its references come to."""

import pytest
from conftest import recipe


def test_a_block_is_had_with_its_references_resolved() -> None:
    parser = recipe(**{"channels": 3, "network_def#dilations": [1, 2]})
    found = parser.get_parsed_content("config").resolved("network_def")
    target = "scripts.networks.meshnet.MeshNet"
    assert found.items() >= {"_target_": target, "channels": 3, "dilations": [1, 2], "dropout": 0.0}.items()
    assert parser.get_parsed_content("network_def").classifier.in_channels == 3  # and stands to be built


@pytest.mark.parametrize("name", ["meshnet", "segresnet"])
def test_asking_what_was_chosen_changes_no_answer(name: str) -> None:
    config = recipe(network_name=name).get_parsed_content("config")
    once, again, third = (config.resolved("network_def") for _ in range(3))
    assert once == again == third
    assert once["_target_"].endswith({"meshnet": ".MeshNet", "segresnet": "SegResNet"}[name])
    assert "_requires_" not in once


def test_a_chosen_block_and_its_values_are_in_the_config_and_not_in_what_was_read() -> None:
    parser = recipe(optimizer_name="sgd", **{"optimizer#lr": 0.5})
    config = parser.get_parsed_content("config")
    assert config["momentum"] == 0.9
    assert config["optimizer"].items() >= {"_target_": "torch.optim.SGD", "lr": 0.5, "nesterov": True}.items()
    assert "momentum" not in parser.get()
    assert "nesterov" not in parser["optimizer"]
    assert config.given("optimizer#lr")
    assert not config.given("momentum", "optimizer#momentum", "no#such")
