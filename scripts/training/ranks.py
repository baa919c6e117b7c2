"""Connect the processes that torchrun has started (ranks), so that they train one network."""

import logging
import os

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.utils import RankFilter

from scripts.common.errors import InputError


def connect_ranks(config: dict, device: str) -> int:
    """Connect this process to the others, by NCCL where there are GPUs, else by Gloo; return how many they are.

    From then on only rank 0 logs. Without torchrun it does nothing and returns 1.

    Args:
        config: the checked config.
        device: what this process computes on.

    Raises:
        InputError: an evaluation, or a GPU that is another process's.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 1
    if "evaluating" in config:
        raise InputError("evaluating: one process does this; start it without torchrun")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    n_gpus = torch.cuda.device_count()
    if n_gpus and (local_rank >= n_gpus or str(device) != f"cuda:{local_rank}"):
        raise InputError(
            f"device {device}: process {local_rank} of this machine trains on cuda:{local_rank}, and there are "
            f"{n_gpus} GPUs; --nproc_per_node is at most that, CUDA_VISIBLE_DEVICES chooses among them"
        )
    if n_gpus:
        torch.cuda.set_device(local_rank)
    store, rank, size = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # in torchrun's store are addresses of earlier ones
    backend = "nccl" if n_gpus else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=size)
    idist.sync()
    logging.getLogger("meshnet").addFilter(RankFilter())
    return size
