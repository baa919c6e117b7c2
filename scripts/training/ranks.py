"""Connect the processes that torchrun has started (ranks), so that they train one network."""

import logging
import os

import ignite.distributed as idist
import torch
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
    local_rank, n_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if n_gpus and (local_rank >= n_gpus or str(device) != f"cuda:{local_rank}"):
        raise InputError(
            f"device {device}: process {local_rank} of this machine trains on cuda:{local_rank}, and there are "
            f"{n_gpus} GPUs; --nproc_per_node is at most that, CUDA_VISIBLE_DEVICES chooses among them"
        )
    idist.initialize("nccl" if n_gpus else "gloo")
    logging.getLogger("meshnet").addFilter(RankFilter())
    return idist.get_world_size()
