"""torchrun starts processes (ranks) and torch's DDP averages their means: here they train as one process would."""

import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from types import TracebackType
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import RankFilter
from torch import nn
from torch.utils.data import Dataset

from scripts.common.errors import InputError, first_cause
from scripts.data.seeded_order import SeededSampler
from scripts.training.losses import WeightedCrossEntropyLoss
from scripts.training.norm_statistics import NormStatistics

NOT_BOTH = "distributed.json has a sampler of its own; leave it out, or the overlay that changes the sampler"


class Ranks:
    """The ranks of one run as ``torchrun`` has started them; without it, this process alone.

    Only rank 0 logs. Of an error that ends all ranks one line is printed: that of the rank that failed first, since the
    others fail only because it is gone.

    Args:
        config: the checked config.
        device: the rank's own device: NCCL connects the ranks if it is a GPU, Gloo if it is a CPU.

    Raises:
        InputError: a device that other ranks have too, or an evaluation by more than one process.
    """

    def __init__(self, config: dict, device: str) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.on_gpu = torch.device(device).type == "cuda"
        if self.size == 1:
            return
        if "evaluating" in config:
            raise InputError("evaluating: one process does this; start it without torchrun")
        if unset := {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
            raise InputError(f"WORLD_SIZE {self.size} without {', '.join(sorted(unset))}; start processes by torchrun")
        local_rank, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if n_gpus and (local_rank >= n_gpus or torch.device(device) != torch.device("cuda", local_rank)):
            raise InputError(
                f"device {device}: process {local_rank} of this machine trains on cuda:{local_rank}, and there are "
                f"{n_gpus} GPUs; --nproc_per_node is at most that, CUDA_VISIBLE_DEVICES chooses among them"
            )
        shows_tracebacks = sys.excepthook is sys.__excepthook__
        if self.on_gpu:
            torch.cuda.set_device(local_rank)
        if not dist.is_initialized():
            dist.init_process_group("nccl" if self.on_gpu else "gloo")
        idist.sync()
        logging.getLogger("meshnet").addFilter(RankFilter())
        self._store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        self._print_error = sys.excepthook  # torch's, which tells the rank and goes on to ours
        if not shows_tracebacks:
            sys.excepthook = self._print_first_error

    def synchronized(self, network: nn.Module) -> nn.Module:
        """The network, its BatchNorm normalizing over all ranks' scans if they are on GPUs; torch has none for CPUs."""
        together = self.size > 1 and self.on_gpu
        return nn.SyncBatchNorm.convert_sync_batchnorm(network) if together else network

    def _print_first_error(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        try:
            is_first = self._store.add(f"failed in start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
        except RuntimeError:  # its keeper is gone
            is_first = True
        if not is_first:
            return
        if re.search("gloo|nccl|connection (closed|reset)", str(first_cause(error)), re.IGNORECASE):
            error = InputError(
                "another rank is gone, torchrun's report says which; what was saved is whole, the same command with "
                "--resume true continues"
            )
        self._print_error(type(error), error, traceback)


class RankSampler(SeededSampler):
    """A rank's part of an epoch, in which each scan comes once, with equally many batches for each rank.

    The ranks' batches of a step together are the batch of one process with ``num_replicas`` times the batch size. A
    rank that has no scan left for the last step repeats one, which counts for nothing: see ``is_spare``.

    Args:
        dataset: the scans of all ranks.
        seed: of order and random transforms.
        batch_size: scans per rank and step.
        num_replicas: number of ranks.
        rank: this one.

    Raises:
        InputError: there are more ranks than scans.
    """

    def __init__(
        self, dataset: Dataset, seed: int, batch_size: int, num_replicas: int = 1, rank: int = 0, **others: Any
    ) -> None:
        if others:
            raise InputError(f"train#sampler: {', '.join(others)}: {NOT_BOTH}")
        if len(dataset) < num_replicas:
            raise InputError(f"{num_replicas} processes for {len(dataset)} training scans: start fewer of them")
        super().__init__(dataset, seed, num_replicas, rank, even_divisible=False)
        steps = math.ceil(math.ceil(len(dataset) / num_replicas) / batch_size)
        self.batch_size, self.length = batch_size, max(self.num_samples, (steps - 1) * batch_size + 1)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start, self.skip = self.skip, 0
        items = list(super().__iter__())
        return islice([*items, *items[: self.length - len(items)]], start, None)

    def is_spare(self, step: int) -> bool:
        """Whether this rank's batch of an epoch's ``step``, from 0, is the repeated one."""
        return step * self.batch_size >= self.num_samples

    def scans(self, step: int) -> int:
        """How many scans all ranks together take in an epoch's ``step``, from 0."""
        whole = self.batch_size * self.num_replicas
        return min(whole, len(self.dataset) - step * whole)


class RankAverage:
    """After each backward pass, makes gradients, loss and running statistics those of all ranks' scans together.

    With a loss L_r that is a mean over the scans of rank r, or torch's class-weighted mean over their voxels, the mean
    over all ranks' scans is sum_r s_r L_r / sum_r s_r, s_r the number of the scans or the sum of their voxels' weights,
    and so is its gradient: what one process with the batches put together computes. DDP would weigh the ranks alike,
    and wrap the network, whose names log, states and cards tell.

    Running statistics are the ranks' mean; without SyncBatchNorm (on CPUs) a rank normalizes by its own batch, so only
    networks without BatchNorm, or with ``norm_eval``, train exactly as one process does.

    Put it before all other handlers. It does nothing if there is one rank.

    Raises:
        InputError: another sampler than a ``RankSampler``, so that the ranks would train on the same scans.
    """

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        if idist.get_world_size() == 1:
            return
        if not isinstance(engine.data_loader.sampler, RankSampler):
            raise InputError(f"train#sampler {type(engine.data_loader.sampler).__name__}: {NOT_BOTH}")
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._backward_completed)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _epoch_started(self, trainer: Engine) -> None:
        for value in trainer.network.state_dict().values():  # equal already, whatever the ranks' machines are
            dist.broadcast(value, src=0)

    def _iteration_started(self, trainer: Engine) -> None:
        key = (trainer.data_loader.sampler.seed, trainer.state.iteration, idist.get_rank())
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))  # the ranks drop different channels
        if idist.get_rank():
            trainer.state.terms = {}  # RunLog, which does this, is on rank 0 only

    def _backward_completed(self, trainer: Engine) -> None:
        step, sampler = (trainer.state.iteration - 1) % trainer.state.epoch_length, trainer.data_loader.sampler
        trainer.state.scans = sampler.scans(step)  # for RunLog
        self._share = self._share_of(trainer, is_spare=sampler.is_spare(step))
        loss = trainer.state.output["loss"].detach().clone()
        parameters = (p for group in trainer.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]  # with those of the window's steps before
        average([loss, *statistics(trainer.network), *gradients], self._share)
        trainer.state.output["loss"] = loss

    def _share_of(self, trainer: Engine, is_spare: bool) -> torch.Tensor:
        label, loss = trainer.state.output["label"], trainer.loss_function
        if is_spare:
            return torch.zeros((), device=label.device)
        if isinstance(loss, WeightedCrossEntropyLoss) and label.shape[1] == len(loss.weight):  # soft labels
            return torch.einsum("bc...,c->", label, loss.weight)
        if isinstance(loss, nn.CrossEntropyLoss) and loss.weight is not None:
            return loss.weight[label.long()].sum()
        return torch.tensor(float(len(label)), device=label.device)

    def _iteration_completed(self, trainer: Engine) -> None:
        terms = getattr(trainer.state, "terms", {})
        if terms:  # by name: a handler may be attached in another order
            values = [torch.tensor(float(terms[name]), device=self._share.device) for name in sorted(terms)]
            average(values, self._share)
            terms.update(zip(sorted(terms), map(float, values), strict=True))


class RankNormStatistics(NormStatistics):
    """Its average over each rank's mini-batches becomes that over all ranks'."""

    def __call__(self, engine: Engine) -> None:
        """Average; called at the end of an epoch."""
        super().__call__(engine)
        if idist.get_world_size() > 1:
            average(statistics(self.network), torch.ones((), device=engine.state.device))


def statistics(network: nn.Module) -> list[torch.Tensor]:
    """The running statistics of a network's normalizations; what it counts is left out."""
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]


@torch.no_grad()
def average(tensors: list[torch.Tensor], share: torch.Tensor) -> None:
    """Replace tensors by their mean over the ranks, each weighted by its ``share``: one exchange for all."""
    tensors, share = [tensor.as_subclass(torch.Tensor) for tensor in tensors], share.as_subclass(torch.Tensor)
    vector = torch.cat([share.reshape(1), *(share * tensor.flatten() for tensor in tensors)])
    dist.all_reduce(vector)
    parts = (vector[1:] / vector[0]).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))
