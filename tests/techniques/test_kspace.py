"""Lines that k-space loses are gone from the image's Fourier transform, and nothing else is."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.techniques.kspace import RandKSpaceLinesd

SHAPE = (12, 16, 9)


def image(seed: int = 0) -> torch.Tensor:
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def without_lines(volume: torch.Tensor, seed: int, **options: float) -> tuple[torch.Tensor, RandKSpaceLinesd]:
    transform = RandKSpaceLinesd("image", **{"prob": 1.0, "fraction": 1.0, "centre": 0.1} | options)
    transform.set_random_state(seed)
    return transform({"image": volume})["image"], transform


@pytest.mark.parametrize("options", [{"prob": 0.0}, {"fraction": 0.0}, {"centre": 1.0}])
def test_losing_nothing_is_the_identity(options: dict) -> None:
    for seed in range(4):
        torch.testing.assert_close(without_lines(image(), seed, **options)[0], image())


def test_lost_lines_are_zero_in_the_full_fourier_transform_and_the_others_are_as_before() -> None:
    axes = set()
    for seed in range(20):
        left, transform = without_lines(image(seed), seed)
        before, after = (np.fft.fftn(volume[0].numpy()) for volume in (image(seed), left))
        same = np.isclose(after, before)
        lost = np.isclose(after, 0) & ~same
        assert (same | lost).all()
        frequency = np.abs(np.fft.fftfreq(SHAPE[transform.axis - 1], 0.5))
        by_line = np.moveaxis(lost, transform.axis - 1, 0).reshape(len(frequency), -1)
        assert (by_line.all(1) == by_line.any(1)).all()  # whole lines
        assert not by_line[frequency <= 0.1].any()  # the centre is kept
        energy = (np.abs(before[lost]) ** 2).sum() / before.size  # Parseval
        assert (image(seed) ** 2).sum() - (left**2).sum() == pytest.approx(energy)
        axes.add(transform.axis)
    assert axes == {1, 2, 3}


def test_the_share_of_lost_lines_is_uniform_up_to_the_fraction() -> None:
    transform, shares = RandKSpaceLinesd("image", prob=1.0, fraction=0.5, centre=0.1).set_random_state(0), []
    for _ in range(300):
        transform.randomize((1, 256, 256, 256))
        assert transform.kept[:13].all()  # 12 of 128 frequencies, and that of 0
        shares.append(1 - transform.kept[13:].double().mean().item())
    assert np.mean(shares) == pytest.approx(0.25, abs=0.05)
    assert max(shares) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_a_wave_is_there_or_vanishes(seed: int) -> None:
    axis = RandKSpaceLinesd("image", 1.0, 1.0)
    axis.set_random_state(seed).randomize((1, *SHAPE))
    side, frequency = SHAPE[axis.axis - 1], 3
    wave = torch.cos(2 * torch.pi * frequency * torch.arange(side, dtype=torch.float64) / side)
    volume = 0.5 + 0.5 * wave.reshape([-1 if a == axis.axis else 1 for a in range(4)]).expand(1, *SHAPE)
    left, transform = without_lines(volume, seed)
    expected = volume if transform.kept[frequency] else torch.full_like(volume, 0.5)
    torch.testing.assert_close(left, expected)


def test_it_follows_the_random_state_and_keeps_the_metadata() -> None:
    volume = MetaTensor(image().float(), meta={"filename_or_obj": "a.nii"})
    first, again, other = (without_lines(volume, seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.shape, first.dtype, first.meta["filename_or_obj"]) == (volume.shape, torch.float32, "a.nii")
    assert torch.equal(volume.as_tensor(), image().float())  # the cache keeps what it gave
