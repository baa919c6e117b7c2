"""Draws stay in their ranges and follow the generator; fields have the scale and the spread that they say."""

import numpy as np
import pytest

from scripts.simulation.random_draws import Draw


def draw(seed: int = 0, **ranges: object) -> Draw:
    return Draw(np.random.default_rng(seed), ranges)


def test_numbers_stay_between_their_limits_and_follow_the_generator() -> None:
    one, again = (draw(3, width=(2.0, 5.0)) for _ in range(2))
    numbers = [one("width") for _ in range(1000)]
    assert 2 <= min(numbers) < 2.1
    assert 4.9 < max(numbers) <= 5
    assert numbers == [again("width") for _ in range(1000)]


def test_chances_come_as_often_as_they_say() -> None:
    some = draw(some=0.3, never=0.0, always=1.0)
    assert sum(some.chance("some") for _ in range(2000)) / 2000 == pytest.approx(0.3, abs=0.04)
    assert not any(some.chance("never") for _ in range(100))
    assert all(some.chance("always") for _ in range(100))


def test_normal_numbers_have_their_standard_deviation() -> None:
    assert float(draw(turn=0.15).normal("turn", 100, 100).std()) == pytest.approx(0.15, rel=0.05)


@pytest.mark.parametrize("scale", [4, 12])
def test_a_field_is_smooth_over_its_scale_and_unrelated_beyond_it(scale: int) -> None:
    field = draw().noise((60, 50, 70), scale, 4)
    assert field.shape == (4, 60, 50, 70)
    assert field.std() == pytest.approx(1, abs=1e-5)

    def correlation(distance: int) -> float:
        return float(np.corrcoef(field[:, distance:].ravel(), field[:, :-distance].ravel())[0, 1])

    assert correlation(1) > 0.9
    assert abs(correlation(4 * scale)) < 0.3
