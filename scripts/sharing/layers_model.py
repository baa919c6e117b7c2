"""MeshNets as TensorFlow.js keeps layers models: ``model.json``, a graph and a list of weights, and files of bytes.

The format: https://github.com/tensorflow/tfjs/blob/master/tfjs-core/src/io/types.ts, Keras's JSON within. Its
convolutions have channels last: kernels are (D, H, W, in, out).
"""

import json
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scripts.common.errors import InputError
from scripts.common.json_file import read_json
from scripts.networks.interleaved import looks_at_volume
from scripts.networks.meshnet import MeshNet

ACTIVATIONS = ("elu", "gelu", "mish", "relu", "relu6", "selu", "sigmoid", "swish", "tanh")  # MONAI has the same words
STORED = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}
HINT = "expected a TensorFlow.js layers model, model.json"


def read(path: str | Path) -> tuple[dict, dict[str, torch.Tensor], dict]:
    """MeshNet's arguments, its weights, and the metadata that someone left in the file, of the model at ``path``.

    Convolutions whose names end with ``_gn`` are followed by an instance normalization that the graph does not have:
    brainchop computes it (epsilon 1e-5, no weights).

    Raises:
        InputError: a file that cannot be read, or a layer that no MeshNet has; the line names it.
    """
    model = read_json(path, HINT)
    try:
        topology, metadata = model["modelTopology"], model.get("userDefinedMetadata") or {}
        convolutions, act = _convolutions(path, topology.get("model_config", topology)["config"])
        weights = _read_weights(Path(path), model["weightsManifest"])
        *hidden, output = convolutions
        arguments = {"in_channels": 0, "out_channels": output["filters"], "channels": hidden[0]["filters"]}
        arguments |= {"dilations": [conv["dilation_rate"][0] for conv in hidden], "act": act}
        arguments["norm"] = "instance" if hidden[0]["name"].endswith("_gn") else None
        state, n_inputs = {}, None
        for i, conv in enumerate(convolutions):
            kernel, n_outputs = weights[f"{conv['name']}/kernel"], conv["filters"]
            bias = weights[f"{conv['name']}/bias"] if conv.get("use_bias", True) else np.zeros(n_outputs, np.float32)
            n_inputs = n_inputs or kernel.shape[-2]
            if kernel.shape != (*conv["kernel_size"], n_inputs, n_outputs) or bias.shape != (n_outputs,):
                _refuse(path, conv, f"weights of shape {kernel.shape} and {bias.shape} do not fit")
            key = f"layers.{i}.0" if i < len(hidden) else "classifier"
            state |= {f"{key}.weight": _tensor(kernel.transpose(4, 3, 0, 1, 2)), f"{key}.bias": _tensor(bias)}
            arguments["in_channels"] = arguments["in_channels"] or n_inputs
            n_inputs = n_outputs
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {type(error).__name__} {error}; {HINT}") from error
    return arguments, state, metadata


def write(network: nn.Module, path: Path, act: str, metadata: dict) -> None:
    """Write ``network``, a MeshNet with the activation ``act``, to ``path`` and ``model.bin`` beside it.

    Batch normalization is folded into the convolutions; the graph takes any grid.

    Raises:
        InputError: a network that such a graph cannot express.
    """
    if not isinstance(network, MeshNet):
        raise InputError(f"network_def: a {type(network).__name__} cannot be written as brainchop's; only MeshNets can")
    if act not in ACTIVATIONS:
        raise InputError(f"network_def: act {act!r} is none of TensorFlow.js; expected one of {', '.join(ACTIVATIONS)}")
    if looks_at_volume(network):
        name = type(network.layers[0][1]).__name__
        raise InputError(f"network_def: {name} of each scan is no layer of TensorFlow.js; only batch norm or none")
    convolutions = {}
    for i, (convolution, norm, *_) in enumerate(network.layers):
        convolutions[f"conv3d_{i}"] = (
            convolution if isinstance(norm, nn.Identity) else fuse_conv_bn_eval(convolution, norm)
        )
    convolutions["output"] = network.classifier
    shape = {"batch_input_shape": [None, None, None, None, network.layers[0][0].in_channels]}
    layers, manifest, data, above = [_layer("InputLayer", "input", None, shape)], [], b"", "input"
    for name, convolution in convolutions.items():
        layers.append(_layer("Conv3D", name, above, _config(convolution)))
        above = name
        if name != "output":
            above = name.replace("conv3d", "activation")
            layers.append(_layer("Activation", above, name, {"activation": act}))
        for key, value in (("kernel", convolution.weight.permute(2, 3, 4, 1, 0)), ("bias", convolution.bias)):
            manifest.append({"name": f"{name}/{key}", "shape": list(value.shape), "dtype": "float32"})
            data += value.detach().numpy().astype("<f4").tobytes()
    ends = {"input_layers": [["input", 0, 0]], "output_layers": [["output", 0, 0]]}
    graph = {"class_name": "Functional", "config": {"name": "meshnet", "layers": layers, **ends}}
    model = {
        "format": "layers-model",
        "generatedBy": "MeshNet bundle",
        "convertedBy": None,
        "modelTopology": {"keras_version": "2.7.0", "backend": "tensorflow", "model_config": graph},
        "weightsManifest": [{"paths": ["model.bin"], "weights": manifest}],
        "userDefinedMetadata": metadata,
    }
    path.with_name("model.bin").write_bytes(data)
    path.write_text(json.dumps(model, indent=1) + "\n")


def _convolutions(path: str | Path, graph: dict | list) -> tuple[list[dict], str]:
    """The configs of the convolutions of a chain that is a MeshNet, and the activation between them."""
    convolutions, activations, above = [], [], None
    for layer in graph["layers"] if isinstance(graph, dict) else graph:
        kind, config = layer["class_name"], layer["config"]
        inputs = [node[0] for nodes in layer.get("inbound_nodes", []) for node in nodes]
        if inputs and inputs != [above]:
            _refuse(path, config, f"takes {' and '.join(inputs)}; in a MeshNet each layer takes the one before it only")
        if kind == "Conv3D":
            convolutions.append(config)
            activations.append(config.get("activation", "linear"))
        elif kind == "Activation" and activations[-1:] == ["linear"]:
            activations[-1] = config["activation"]
        elif kind != "InputLayer":
            _refuse(path, config, f"a {kind}, which MeshNet has not")
        above = config["name"]
    if len(convolutions) < 2:
        raise InputError(f"{path}: {len(convolutions)} convolutions; a MeshNet has two or more")
    first, last = convolutions[0], convolutions[-1]
    for config, act in zip(convolutions, activations, strict=True):
        is_last = config is last
        has = {"kernel_size": [1] * 3 if is_last else [3] * 3, "strides": [1] * 3, "groups": 1}
        has |= {"data_format": "channels_last", "activation": "linear" if is_last else activations[0]}
        if not is_last:
            has |= {"filters": first["filters"], "padding": "same", "dilation_rate": config["dilation_rate"][:1] * 3}
        got = {"strides": [1] * 3, "groups": 1, "data_format": "channels_last", **config, "activation": act}
        for key, value in has.items():
            if got[key] != value:
                _refuse(path, config, f"{key} {got[key]}, where a MeshNet has {value}")
        if not is_last and config["name"].endswith("_gn") != first["name"].endswith("_gn"):
            _refuse(path, config, "normalized (_gn) or not, unlike the first")
    if activations[0] not in ACTIVATIONS:
        _refuse(path, first, f"activation {activations[0]}, expected one of {', '.join(ACTIVATIONS)}")
    return convolutions, activations[0]


def _read_weights(path: Path, manifest: list[dict]) -> dict[str, np.ndarray]:
    """The weights by name; those kept as 8 or 16 bits, q, are q * scale + min."""
    weights = {}
    for group in manifest:
        files = [path.with_name(name) for name in group["paths"]]
        try:
            data, start = b"".join(file.read_bytes() for file in files), 0
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}); {path} lists it") from error
        for weight in group["weights"]:
            name, quantization = weight["name"], weight.get("quantization") or {}
            stored = STORED.get(quantization.get("dtype", weight["dtype"])) if weight["dtype"] == "float32" else None
            if stored is None:
                raise InputError(
                    f"{path}: {name} is {weight['dtype']} {quantization or ''}; only floats can be weights"
                )
            count = int(np.prod(weight["shape"]))
            stop = start + count * np.dtype(stored).itemsize
            values = np.frombuffer(data[start:stop], stored)
            if len(values) != count:
                raise InputError(f"{files[-1]}: ends within {name}; download it again")
            start, scale = stop, quantization.get("scale", 1)
            values = values.astype(np.float32) * np.float32(scale) + np.float32(quantization.get("min", 0))
            if not np.isfinite(values).all():
                raise InputError(f"{files[-1]}: {name} has values that are not finite")
            weights[name] = values.reshape(weight["shape"])
        if start != len(data):
            raise InputError(
                f"{files[-1]}: {len(data)} bytes, but {path.name} lists {start}; they do not belong together"
            )
    return weights


def _layer(kind: str, name: str, above: str | None, config: dict) -> dict:
    inbound = [] if above is None else [[[above, 0, 0, {}]]]
    config = {"name": name, "trainable": False, "dtype": "float32", **config}
    return {"class_name": kind, "config": config, "name": name, "inbound_nodes": inbound}


def _config(convolution: nn.Conv3d) -> dict:
    sizes = {"kernel_size": convolution.kernel_size, "strides": [1] * 3, "dilation_rate": convolution.dilation}
    plain = {"padding": "same", "data_format": "channels_last", "activation": "linear", "use_bias": True}
    return {"filters": convolution.out_channels, **sizes, **plain}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _refuse(path: str | Path, config: dict, why: str) -> NoReturn:
    raise InputError(f"{path}: layer {config.get('name')}: {why}; it cannot be imported")
