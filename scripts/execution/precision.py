"""Choose the precision of a device and compute in it, also on CPUs."""

import logging
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch._subclasses.fake_tensor import FakeTensorMode

from scripts.common.errors import InputError
from scripts.networks.meshnet import is_meshnet

logger = logging.getLogger("meshnet")
SMALLEST = 3  # voxels; on smaller sides oneDNN's bfloat16 weight gradients are garbage (torch 2.13.0)


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
        self.sides: dict[torch.Size, int] = {}  # by the shape of what is trained on

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The network's output in float32, in which losses and metrics can sum over volumes."""
        here = self.dtype is not None and inputs.device.type == "cpu"
        if here and torch.is_grad_enabled() and not is_meshnet(network):
            here = self._smallest_side(inputs.shape, network) >= SMALLEST  # MeshNet itself avoids it
        with torch.autocast("cpu", self.dtype) if here else nullcontext():
            return super().__call__(inputs, network, *args, **kwargs).float()

    def _smallest_side(self, shape: torch.Size, network: torch.nn.Module) -> int:
        """Of all that the network convolves in a volume of that shape, found in shapes, without computing anything."""
        if shape not in self.sides:
            kinds = (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
            layers = [m for m in network.modules() if isinstance(m, kinds) and max(m.kernel_size) > 1]
            seen = [max(shape)]
            training = {module: module.training for module in network.modules()}
            hooks = [m.register_forward_pre_hook(lambda _, x: seen.append(min(x[0].shape[2:]))) for m in layers]
            try:
                with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                    network.eval()(torch.zeros(shape)) if layers else None
            finally:
                for module, mode in training.items():
                    module.training = mode
                for hook in hooks:
                    hook.remove()
            self.sides[shape] = min(seen)
            if min(seen) < SMALLEST:
                logger.info(
                    f"Training in float32: {type(network).__name__} convolves volumes with a side of {min(seen)}"
                )
        return self.sides[shape]
