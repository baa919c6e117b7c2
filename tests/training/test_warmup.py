"""A schedule behind a warm-up is torch's own, later, and its state goes on."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from scripts.training.warmup import warmed_up


def made(steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return optimizer, warmed_up(CosineAnnealingLR, optimizer, steps, T_max=10)


def rates_of(optimizer: torch.optim.Optimizer, schedule: LRScheduler, n: int) -> list[float]:
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_schedule_begins_behind_the_warm_up() -> None:
    plain = rates_of(*made(0), 10)
    assert isinstance(made(0)[1], CosineAnnealingLR)
    assert rates_of(*made(4), 14) == pytest.approx([0.1, 0.2, 0.3, 0.4, *plain])


@pytest.mark.parametrize("done", [2, 4, 9])
def test_a_state_goes_on_to_the_last_bit(done: int) -> None:
    optimizer, schedule = made(4)
    rates_of(optimizer, schedule, done)
    other, again = made(4)
    other.load_state_dict(optimizer.state_dict())
    again.load_state_dict(schedule.state_dict())
    assert rates_of(other, again, 14 - done) == rates_of(optimizer, schedule, 14 - done)
