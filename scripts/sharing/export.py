"""Exports to ONNX, torch.export, TorchScript and TensorFlow.js, kept only if they answer as the network does."""

import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from monai.data import save_net_with_metadata
from monai.transforms import GaussianSmooth, ScaleIntensity
from monai.utils import optional_import

from scripts.common.errors import InputError
from scripts.common.files import replace_files
from scripts.networks.meshnet import ByScan
from scripts.sharing import brainchop
from scripts.sharing.brainchop import Answer
from scripts.weights.weights import Weights

onnxruntime, _ = optional_import("onnxruntime")
openvino, has_openvino = optional_import("openvino")
BUNDLE = Path(__file__).resolve().parents[2]
WEIGHTS = str(BUNDLE / "models" / "model.pt")
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".ts", "brainchop": "_brainchop/model.json"}
MAX_DIFFERENCE = 1e-3  # of the logits, relative to the largest; float32 gives 1e-5 or less
MAX_VOXELS = 1e-4  # share that may have another class: those on the border between two


def export(
    ckpt_path: str = WEIGHTS,
    output_dir: str | None = None,
    formats: str = "onnx,pt2,torchscript",
    norm_adaptation: float | None = None,
) -> None:
    """Write ``model.onnx``, ``model.pt2`` and ``model.ts`` and compare their answers with the network's on three grids.

    The ONNX file is run by ONNX Runtime, and by OpenVINO where it is installed; brainchop's files, ``model.json`` and
    ``model.bin`` in a folder ``model_brainchop``, are read again as they are imported. What fails is not written.
    What is exported computes what inference does. brainchop's layers cannot normalize by the scan.

    Args:
        ckpt_path: the weights; the network is built from the card beside them.
        output_dir: folder for the files, named like the weights; the weights' own by default.
        formats: of "onnx", "pt2" (torch.export), "torchscript" and "brainchop" those to write, with commas between.
        norm_adaptation: share of a scan's own statistics, whatever the scan; 0 for none. Default: as the card says.

    Raises:
        InputError: no weights, an unknown format, a network that it cannot express, an export that answers otherwise, a
            folder that cannot be written.
    """
    formats = re.findall(r"\w+", str(formats))
    writers = {"onnx": _write_onnx, "pt2": _write_pt2, "torchscript": _write_torchscript, "brainchop": brainchop.write}
    for name in (set(formats) or {"''"}) - set(SUFFIXES):
        raise InputError(f"--formats {name}: expected some of {', '.join(SUFFIXES)}")
    weights = Weights(ckpt_path, norm_adaptation=norm_adaptation, single=True)
    card, network = weights.card, weights.network().eval()
    if "brainchop" in formats and weights.settings["norm_shift_limit"] is not None:
        raise InputError(f"{ckpt_path}: normalizes by the scan, which brainchop cannot; give --norm_adaptation 0")
    file = Path(*weights.members)
    for name in formats:
        path = Path(output_dir or file.parent) / (file.stem + SUFFIXES[name])
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / path.name
            for runtime, answer in writers[name](network, partial, card).items():
                error, share = compare(network, answer, card)
                what = f"largest difference {error:.1e} of the largest logit, {share:.4%} of voxels differ in class"
                if not (error <= MAX_DIFFERENCE and share <= MAX_VOXELS):  # so if it is NaN
                    raise InputError(f"{path}: not written, {runtime} answers otherwise than torch: {what}")
                print(f"{path.name} in {runtime}: {what}")
            files = sorted(Path(folder).iterdir())
            with replace_files([path.with_name(written.name) for written in files], "wb") as targets:
                for written, target in zip(files, targets, strict=True):
                    target.write(written.read_bytes())
        size = sum(path.with_name(written.name).stat().st_size for written in files)
        print(f"Written: {path} ({size / 1e6:.2f} MB)")


def compare(network: torch.nn.Module, answer: Answer, card: dict) -> tuple[float, float]:
    """Largest difference of logits, relative to the largest logit, and the share of voxels of another class.

    Over smooth noise on the card's grid and on two with odd sides, which find out a graph that holds for one grid only.
    """
    differences = []
    for sides in (card["spatial_size"], (33, 48, 40), (20, 17, 35)):
        torch.manual_seed(0)
        x = ScaleIntensity()(GaussianSmooth(sigma=2.0)(torch.rand(card["network_def"].get("in_channels", 1), *sides)))
        with torch.no_grad():
            expected = network(torch.as_tensor(x[None])).numpy()
            got = answer(np.ascontiguousarray(x[None], np.float32))
        difference = np.abs(got - expected).max() / np.abs(expected).max()
        differences.append((difference, (got.argmax(1) != expected.argmax(1)).mean()))
    return tuple(np.max(differences, axis=0))


def _graph(network: torch.nn.Module) -> torch.nn.Module:
    """The network as a graph can compute it."""
    if getattr(network, "norm_shift_limit", None) is None:
        return network
    return ByScan(network).eval().requires_grad_(False)  # torch differentiates no batch_norm by its statistics


def _example(card: dict) -> tuple[torch.Tensor, dict]:
    """An image (1, C, D, H, W) to follow through the network, and which of its sides may be others."""
    sides = {axis: torch.export.Dim(name, min=4, max=1024) for axis, name in ((2, "d"), (3, "h"), (4, "w"))}
    return torch.rand(1, card["network_def"].get("in_channels", 1), 32, 40, 48), sides


def _write_pt2(network: torch.nn.Module, path: Path, card: dict) -> dict[str, Answer]:
    x, sides = _example(card)
    with torch.no_grad():
        program = torch.export.export(_graph(network), (x,), dynamic_shapes=(sides,))
    torch.export.save(program, path, extra_files={"card.json": json.dumps(card)})
    module = torch.export.load(path).module()
    return {"torch.export": lambda x: module(torch.from_numpy(x)).detach().numpy()}


def _write_onnx(network: torch.nn.Module, path: Path, card: dict) -> dict[str, Answer]:
    x, sides = _example(card)
    names = {"input_names": ["image"], "output_names": ["pred"]}
    with torch.no_grad():
        program = torch.onnx.export(_graph(network), (x,), **names, dynamic_shapes=(sides,), dynamo=True, verbose=False)
    program.model.metadata_props.update({key: json.dumps(value) for key, value in card.items()})
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    runtimes = {"ONNX Runtime": lambda x: session.run(None, {"image": x})[0]}
    if has_openvino:
        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        runtimes["OpenVINO"] = lambda x: model(x)[0]
    return runtimes


def _write_torchscript(network: torch.nn.Module, path: Path, card: dict) -> dict[str, Answer]:
    inference = (BUNDLE / "configs" / "inference.json").read_bytes()  # MONAI Deploy reads it from the file
    more = {"inference.json": inference, "card.json": json.dumps(card).encode()}
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    graph = _graph(network)
    x = torch.rand(1, card["network_def"].get("in_channels", 1), 16, 16, 16)
    scripted = torch.jit.script(graph) if graph is network else torch.jit.trace(graph, x, check_trace=False)
    save_net_with_metadata(scripted, str(path), meta_values=metadata, more_extra_files=more)
    scripted = torch.jit.load(path)
    return {"TorchScript": lambda x: scripted(torch.from_numpy(x)).detach().numpy()}
