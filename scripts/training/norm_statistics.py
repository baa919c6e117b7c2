"""Average BatchNorm's running statistics anew before a validation: they lag behind weights that move fast."""

from dataclasses import dataclass
from itertools import islice

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import update_bn

from scripts.common.errors import InputError


@dataclass(eq=False)
class NormStatistics:
    """After an epoch, replaces the running statistics by their average over the epoch's first training scans.

    Training itself does not use them (it normalizes by the mini-batch's own), so only what is validated and saved
    changes. Processes that train together go on with those of the first. Attach it before the validation handler.

    Raises:
        InputError: the network's statistics stand still (``norm_eval``).
    """

    network: torch.nn.Module  # whose BatchNorm layers
    n_scans: int  # mini-batches to average over, an epoch's at most; 0 leaves the statistics as training moves them
    interval: int = 1  # epochs from one time to the next; the last epoch is always one
    dtype: torch.dtype | None = None  # to autocast to, as in training; None is float32

    def __post_init__(self) -> None:
        if self.n_scans and getattr(self.network, "norm_eval", False):
            raise InputError("update_bn_scans: the network trains by its statistics, leave it 0; or --norm_eval false")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Average, and share rank 0's statistics; called at the end of an epoch."""
        if engine.state.epoch % self.interval and engine.state.epoch < engine.state.max_epochs:
            return
        if self.n_scans:
            self._average(engine)
        for buffer in self.network.buffers():
            idist.broadcast(buffer)

    def _average(self, engine: Engine) -> None:
        device = torch.device(engine.state.device)
        images = (batch["image"] for batch in islice(engine.data_loader, self.n_scans))
        autocast = torch.autocast(device.type, self.dtype, enabled=self.dtype is not None)
        with autocast, torch.random.fork_rng():  # a run that is continued here may do it twice
            update_bn(images, self.network, device)
