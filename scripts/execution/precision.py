"""Mixed precision on any device: MONAI's ``amp`` autocasts on CUDA alone, this inferer also on CPUs with bfloat16."""

import logging
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import SimpleInferer

from scripts.common.errors import InputError
from scripts.networks.meshnet import is_meshnet

logger = logging.getLogger("meshnet")


def autocast_dtype(amp: bool, device: torch.device | str, dtype: str = "auto") -> torch.dtype | None:
    """The type that convolutions compute in: None is float32.

    Args:
        amp: False is float32 everywhere.
        device: where the network is.
        dtype: "float16", "bfloat16", or "auto": float16 on CUDA, on a CPU bfloat16 where it multiplies that in
            hardware (emulation is slower than float32). On other devices, such as mps, it is float32, as a line says.

    Raises:
        InputError: another dtype, or float16 on a CPU.
    """
    if dtype not in ("auto", "bfloat16", "float16"):
        raise InputError(f"amp_dtype {dtype}: expected auto, bfloat16 or float16 (float32 is --amp false)")
    on_cpu = torch.device(device).type == "cpu"
    if not amp:
        return None
    if (kind := torch.device(device).type) not in ("cpu", "cuda"):
        logger.info(f"Computing in float32: mixed precision is for CUDA and CPUs, not for {kind}")
        return None
    if dtype == "auto":
        dtype = "float16" if not on_cpu else "bfloat16" if has_bfloat16() else None
    if dtype == "float16" and on_cpu:
        raise InputError("amp_dtype float16: CPUs have no fast float16; use auto or bfloat16")
    return dtype and getattr(torch, dtype)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class AutocastInferer(SimpleInferer):
    """Runs the network under autocast on a CPU; on CUDA the engine's ``amp`` does it.

    Args:
        dtype: what ``autocast_dtype`` returns.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The network's output in float32, in which losses and metrics can sum over volumes."""
        # oneDNN's bf16 weight gradients are garbage on volumes with a side of 2 (torch 2.13.0): what other networks,
        # which halve a volume four times, make of a side of 32. MeshNet itself avoids it.
        too_small = min(inputs.shape[2:]) < 48 and not is_meshnet(network)
        here = self.dtype is not None and inputs.device.type == "cpu" and not (too_small and torch.is_grad_enabled())
        with torch.autocast("cpu", self.dtype) if here else nullcontext():
            return super().__call__(inputs, network, *args, **kwargs).float()
