"""The grid is a function of the epoch; what is on it is the mean of what was on the full one."""

import pytest
import torch
from ignite.engine import Engine, State
from monai.data import MetaTensor

from scripts.networks.meshnet import MeshNet
from scripts.techniques.coarse_to_fine import CoarseToFine, side_of


def at(epoch: int, shares: list[float], epochs: int = 3, network: torch.nn.Module | None = None) -> CoarseToFine:
    trainer, prepare = Engine(lambda *_: None), CoarseToFine(shares)
    prepare.attach(trainer)
    trainer.network = network or MeshNet(channels=1)
    trainer.state = State(epoch=epoch, max_epochs=epochs)
    return prepare


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1]), (2, [0.75, 1]), (3, [0.5, 0.75, 1]), (6, [0.5] * 2 + [0.75] * 2 + [1] * 2), (4, [0.5, 0.75, 1, 1])],
)
def test_epochs_are_split_into_equal_parts_and_the_last_is_in_the_last(epochs: int, expected: list[float]) -> None:
    assert [at(epoch, [0.5, 0.75, 1], epochs).share for epoch in range(1, epochs + 1)] == expected


@pytest.mark.parametrize(
    ("side", "share", "expected"),
    [(256, 0.5, 128), (256, 0.75, 192), (96, 0.7, 64), (32, 0.5, 16), (32, 0.25, 16), (30, 1, 30), (12, 0.5, 12)],
)
def test_sides_are_multiples_of_8_and_at_least_16(side: int, share: float, expected: int) -> None:
    assert side_of(side, share) == expected


def batch(soft: bool) -> dict:
    generator = torch.Generator().manual_seed(0)
    lesion = torch.rand(2, 1, 32, 48, 32, generator=generator)
    image = MetaTensor(torch.rand(2, 1, 32, 48, 32, generator=generator), affine=torch.eye(4))
    return {"image": image, "label": torch.cat([1 - lesion, lesion], 1) if soft else (lesion > 0.6).byte()}


def halved(volume: torch.Tensor) -> torch.Tensor:
    n, c, d, h, w = volume.shape
    return volume.reshape(n, c, d // 2, 2, h // 2, 2, w // 2, 2).mean((3, 5, 7))


@pytest.mark.parametrize("soft", [False, True])
def test_half_the_side_is_the_mean_of_eight_voxels(soft: bool) -> None:
    data = batch(soft)
    image, label = at(1, [0.5, 1])(data)
    torch.testing.assert_close(image, halved(data["image"].as_tensor()))
    mean = halved(data["label"].float())
    if soft:
        torch.testing.assert_close(label, mean)
        torch.testing.assert_close(label.sum(1), torch.ones(2, 16, 24, 16))
    else:
        assert label.dtype == torch.uint8
        assert torch.equal(label, (mean >= 0.5).byte())
    assert data["image"].shape == (2, 1, 32, 48, 32)  # the batch is the loader's


def test_a_label_stays_on_its_place_and_a_ramp_a_ramp() -> None:
    x = torch.linspace(0, 1, 32).expand(1, 1, 32, 32, 32)
    image, label = at(2, [0.5, 0.75, 1])({"image": x, "label": (x > 0.5).byte()})
    assert image.shape == label.shape == (1, 1, 24, 24, 24)
    assert torch.equal(label, (image > 0.5).byte())
    assert image[0, 0, 0, 0].diff().min() > 0
    assert image.mean() == pytest.approx(0.5)


def test_the_full_grid_is_left_alone() -> None:
    data = batch(soft=False)
    image, label = at(3, [0.5, 0.75, 1])(data)
    assert torch.equal(image, data["image"])
    assert torch.equal(label, data["label"])


def test_networks_that_halve_four_times_get_multiples_of_16_and_at_least_32() -> None:
    image, label = at(1, [0.5, 1], network=torch.nn.Identity())(batch(soft=False), "cpu")
    assert image.shape == label.shape == (2, 1, 32, 32, 32)
