"""A network that cannot be trained on a grid is found before anything is trained, with the reason."""

import pytest

from scripts.comparison.fit import misfit, takes_gradients, trains_by_steps
from scripts.search.space import read_recipe


@pytest.mark.parametrize("name", ["meshnet", "segresnet", "unet"])
def test_a_grid_that_fits_is_none(name: str) -> None:
    assert misfit(read_recipe({"spatial_size": [32, 32, 32], "device": "cpu", "network_name": name})) is None


@pytest.mark.parametrize(
    ("name", "side", "reason"),
    [
        ("segresnet", 28, "cannot be trained at 28x28x28 (RuntimeError: "),
        ("residual_unet", 16, "cannot be trained at 16x16x16 (ValueError: Expected more than 1 spatial element"),
    ],
)
def test_a_grid_that_does_not_fit_is_a_line(name: str, side: int, reason: str) -> None:
    found = misfit(read_recipe({"network_name": name, "spatial_size": [side] * 3, "device": "cpu"}))
    assert found.startswith(reason)
    assert "\n" not in found


def test_a_network_that_gives_another_grid_does_not_fit() -> None:
    layer = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 3}
    found = misfit(read_recipe({"network_def": layer, "spatial_size": [8] * 3, "device": "cpu"}))
    assert found == "gives (6, 6, 6) voxels for (8, 8, 8)"


def test_what_is_not_trained_by_steps_fits_any_grid() -> None:
    recipe = read_recipe({"run": ["$@config", "$print(@seed)"]})
    assert not trains_by_steps(recipe)
    assert not takes_gradients(recipe)
    assert misfit(recipe) is None
