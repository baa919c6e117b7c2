"""Make a learning rate schedule that begins behind a linear warm-up, from a config's arguments."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler, SequentialLR


def cycles_momentum(optimizer: Optimizer, is_given: bool) -> bool:
    """Return whether OneCycleLR cycles the momentum: the optimizer has one, and nobody gave a value for it."""
    has_momentum = "betas" in optimizer.defaults or optimizer.defaults.get("momentum", 0) > 0
    return has_momentum and not is_given


def warmed_up(schedule: Callable[..., LRScheduler], optimizer: Optimizer, steps: int, **arguments: Any) -> LRScheduler:
    """A ``schedule`` of these ``arguments`` that begins behind a linear warm-up of some ``steps``.

    Step i of the warm-up, counted from 0, has (i + 1) / (steps + 1) of the rate; 0 steps are none.
    """
    main = schedule(optimizer, **arguments)
    if not steps:
        return main
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / (steps + 1), total_iters=steps), main], [steps])
