"""MONAI autocasts on CUDA alone: this inferer does it on the CPUs that compute in bfloat16 by themselves."""

from typing import Any

import torch
from monai.inferers import SimpleInferer

from scripts.scans import InputError


class AutocastInferer(SimpleInferer):
    """Runs the network in bfloat16 on a CPU with native support; on CUDA MONAI's engine does it, in float16.

    Args:
        precision: "auto" (bfloat16 where the CPU has it), "bf16" or "fp32".

    Raises:
        InputError: another precision.
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__()
        if precision not in ("auto", "bf16", "fp32"):
            raise InputError(f"precision {precision}: expected auto, bf16 or fp32")
        self.enabled = precision == "bf16" or (precision == "auto" and has_bfloat16())

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The network's output in float32."""
        if inputs.device.type != "cpu" or not self.enabled:
            return super().__call__(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(inputs, network, *args, **kwargs).float()


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulation is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
