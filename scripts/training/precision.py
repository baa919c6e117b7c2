"""MONAI autocasts on CUDA alone: this inferer does it on the CPUs that compute in bfloat16 by themselves."""

from typing import Any

import torch
from monai.inferers import SimpleInferer

from scripts.common.errors import InputError


class AutocastInferer(SimpleInferer):
    """Runs the network in bfloat16 on a CPU with native support; on CUDA the engine's ``amp`` does it.

    Args:
        precision: "auto" (on CUDA fp16, on a CPU bf16 where it is native, else fp32), "bf16", "fp16" or "fp32".
        device: where the network is.

    Raises:
        InputError: another precision, or fp16 on a CPU.
    """

    def __init__(self, precision: str = "auto", device: torch.device | str = "cpu") -> None:
        super().__init__()
        if precision not in ("auto", "bf16", "fp16", "fp32"):
            raise InputError(f"precision {precision}: expected auto, bf16, fp16 or fp32")
        on_cpu = torch.device(device).type == "cpu"
        if precision == "fp16" and on_cpu:
            raise InputError("precision fp16: CPUs have no fast float16; use auto, bf16 or fp32")
        self.enabled = on_cpu and (precision == "bf16" or (precision == "auto" and has_bfloat16()))

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The network's output in float32."""
        if not self.enabled:
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulation is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
