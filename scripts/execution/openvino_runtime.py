"""Compute a MeshNet by OpenVINO, in the same steps as in torch; on some processors it is faster.

OpenVINO is optional: ``pip install openvino``.
"""

import numpy as np
import torch
from monai.utils import optional_import
from torch import nn

from scripts.execution.air import FoldedInAir
from scripts.networks.interleaved import Convolve, Folded, Split

openvino, has_openvino = optional_import("openvino")
ops, _ = optional_import("openvino", name="opset13")
ACTIVATIONS = (nn.ReLU, nn.ELU)


def infer(x: torch.Tensor, steps: list, folded: list[Folded]) -> torch.Tensor:
    """What ``interleaved.infer`` computes, for activations in ``ACTIVATIONS``; bfloat16 weights are computed in it.

    The graph is made anew for each volume, since boxes of heads differ: that takes a tenth of a second.
    """
    image = ops.parameter([*x.shape], openvino.Type.f32)
    graph = image
    precision = "bf16" if folded[0].weight.dtype == torch.bfloat16 else "f32"
    shape = list(x.shape[2:])
    for step in steps:
        if isinstance(step, Convolve):
            graph = _activated(graph, folded[step.layer - 1]) if step.layer else graph
            graph = _convolved(graph, folded[step.layer], step, shape)
            continue
        k = _array([1, 1, *step.k], np.int64)
        zeros = _array([0] * 5, np.int64)
        rearrange = ops.space_to_batch if isinstance(step, Split) else ops.batch_to_space
        shape = [n // f if isinstance(step, Split) else n * f for n, f in zip(shape, step.k, strict=True)]
        graph = rearrange(graph, k, zeros, zeros)
    hints = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(openvino.Model([graph], [image]), "CPU", hints)
    return torch.from_numpy(compiled([x.float().contiguous().numpy()])[0])


def _convolved(graph: object, layer: Folded, step: Convolve, shape: list[int]) -> object:
    ends = getattr(layer, "ends", ((False, False),) * 3)
    bias = layer.bias.float()[None, :, None, None, None]
    field = torch.zeros(1, bias.shape[1], *(n if any(end) else 1 for n, end in zip(shape, ends, strict=True)))
    layer.correct_border(field, step.dilation)
    padding, strides = [*step.padding], [1, 1, 1]
    graph = ops.convolution(graph, _array(layer.weight.float()), strides, padding, padding, [*step.dilation])
    return ops.add(graph, _array(bias + field))


def _activated(graph: object, layer: Folded) -> object:
    in_air = isinstance(layer, FoldedInAir)
    is_relu = isinstance(layer.act, nn.ReLU)
    if in_air and is_relu:
        return ops.maximum(graph, _array(-layer.air.float()[None]))
    graph = ops.relu(graph) if is_relu else ops.elu(graph, layer.act.alpha)
    return ops.subtract(graph, _array(layer.air.float()[None])) if in_air else graph


def _array(values: object, dtype: type = np.float32) -> object:
    values = values.detach().contiguous().numpy() if isinstance(values, torch.Tensor) else values
    return ops.constant(np.asarray(values, dtype))
