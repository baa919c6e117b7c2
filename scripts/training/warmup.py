"""Make a learning rate schedule that begins behind a linear warm-up, from a config's arguments."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR


def warmed_up(schedule: Callable[..., LRScheduler], optimizer: Optimizer, steps: int, **arguments: Any) -> LRScheduler:
    """A ``schedule`` of these ``arguments`` that begins behind a linear warm-up of some ``steps``.

    Step i of the warm-up, counted from 0, has (i + 1) / (steps + 1) of the rate; 0 steps are none.
    """
    main = schedule(optimizer, **arguments)
    if not steps:
        return main
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (steps + 1), total_iters=steps), main], [steps])
