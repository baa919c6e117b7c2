"""Choose the program that computes the network: torch or OpenVINO, by name or by measuring which is faster."""

import logging
import time
from collections.abc import Callable

import torch

from scripts.common.errors import InputError
from scripts.execution import openvino_runtime
from scripts.execution.agreement import each
from scripts.execution.air import can_skip_air
from scripts.networks import interleaved
from scripts.networks.interleaved import fold, plan

logger = logging.getLogger("meshnet")
TRIED_ON = (96, 96, 96)  # voxels; less tells little of a scan


def choose_runtime(runtime: str, network: torch.nn.Module, dtype: torch.dtype | None, device: str) -> Callable:
    """What runs the steps of a MeshNet, as ``interleaved.infer`` does.

    Args:
        runtime: "torch", "openvino", or "auto" for the faster one on this machine, as a line says.
        network: whose steps they are, or a ``ModuleList``.
        dtype: what ``autocast_dtype`` returns.
        device: where the network is.

    Raises:
        InputError: another name; or OpenVINO was asked for, but is not installed, or cannot express the network.
    """
    if runtime not in ("torch", "openvino", "auto"):
        raise InputError(f"runtime {runtime!r}: expected torch, openvino or auto")
    why = ""
    if not openvino_runtime.has_openvino:
        why = "is not installed; pip install openvino, or --runtime torch"
    elif torch.device(device).type != "cpu":
        why = f"computes on CPUs here, not on {device}; give --device cpu, or --runtime torch"
    elif not all(
        (can_skip_air(one) or getattr(one, "norm_adaptation", 0)) and isinstance(layer[2], openvino_runtime.ACTIVATIONS)
        for one in each(network)
        for layer in getattr(one, "layers", [None])
    ):
        why = "takes MeshNets with ReLU or ELU only, without instance normalization; give --runtime torch"
    if why and runtime == "openvino":
        raise InputError(f"runtime openvino: it {why}")
    if why or runtime == "torch":
        return interleaved.infer
    return openvino_runtime.infer if runtime == "openvino" else _faster(each(network)[0], dtype)


def _faster(network: torch.nn.Module, dtype: torch.dtype | None) -> Callable:
    x = torch.rand(1, network.layers[0][0].in_channels, *TRIED_ON)
    seconds = {}
    steps = plan([layer[0].dilation for layer in network.layers], TRIED_ON)
    with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        folded = fold(network, "cpu")
        for name, run in {"torch": interleaved.infer, "OpenVINO": openvino_runtime.infer}.items():
            run(x, steps, folded)
            start = time.perf_counter()
            run(x, steps, folded)
            seconds[name, run] = time.perf_counter() - start
    name, run = min(seconds, key=seconds.get)
    took = ", ".join(f"{name} {second:.2f} s" for (name, _), second in seconds.items())
    logger.info(f"Computing with {name} ({'x'.join(map(str, TRIED_ON))} voxels: {took})")
    return run
