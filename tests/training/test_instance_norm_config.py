"""norm "instance" normalizes by the scan's own statistics, in validation and inference too."""

from pathlib import Path

import pytest
import torch
from conftest import recipe

from scripts.weights.card import network_from_card


@pytest.mark.parametrize(("norm", "is_own"), [("instance", True), ("batch", False)])
def test_network_of_the_card_sees_a_brighter_scan_as_the_same(
    norm: str, is_own: bool, cohort_dir: Path, tmp_path: Path
) -> None:
    parser = recipe(dataset_dir=cohort_dir, output_dir=tmp_path / "eval", channels=3, norm=norm)
    parser.get_parsed_content("config")
    network = network_from_card(parser.get_parsed_content("model_card")).eval()
    network.load_state_dict(parser.get_parsed_content("network").state_dict())
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(network(100 * x), network(10 * x), atol=1e-3) == is_own
