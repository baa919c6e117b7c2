"""MONAI exports a network and trusts the file: this keeps an export only if it answers as the network does."""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import monai
import numpy as np
import torch
from monai.data import save_net_with_metadata

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.networks.weights import read_card, read_checkpoint, refuse_other_weights

BUNDLE = Path(__file__).resolve().parents[2]
WEIGHTS = str(BUNDLE / "models" / "model.pt")
MAX_DIFFERENCE = 1e-3  # of the logits, relative to the largest; float32 gives 1e-5 or less
MAX_VOXELS = 1e-4  # share that may have another class: those on the border between two
Answer = Callable[[np.ndarray], np.ndarray]


def export(
    ckpt_path: str = str(BUNDLE / "models" / "model.pt"),
    output_dir: str | None = None,
    formats: str = "onnx,torchscript",
) -> None:
    """Write ``model.onnx`` and ``model.ts`` and compare their answers with the network's on three grids.

    The ONNX file is run by ONNX Runtime, and by OpenVINO where it is installed. A file that fails is not left.

    Args:
        ckpt_path: the weights; their card must be beside them.
        output_dir: folder for the files, named like the weights; the weights' own by default.
        formats: "onnx", "torchscript" or both with a comma between.

    Raises:
        InputError: no weights, an unknown format, a package that is missing, or an export that answers otherwise.
    """
    formats = formats if isinstance(formats, tuple | list) else str(formats).split(",")
    for name in formats:
        if name not in ("onnx", "torchscript"):
            raise InputError(f"--formats {name}: expected onnx, torchscript or both")
    card, weights = read_card(ckpt_path), read_checkpoint(ckpt_path)
    network = MeshNet(channels=card["channels"]).eval()
    refuse_other_weights(ckpt_path, network.state_dict(), weights)
    network.load_state_dict(weights)
    folder = Path(output_dir) if output_dir else Path(ckpt_path).parent
    folder.mkdir(parents=True, exist_ok=True)
    for name in formats:
        write, suffix = {"onnx": (_write_onnx, ".onnx"), "torchscript": (_write_torchscript, ".ts")}[name]
        path = folder / Path(ckpt_path).with_suffix(suffix).name
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            partial = Path(temporary) / path.name
            write(network, partial, card)
            for runtime, answer in _runtimes(partial).items():
                difference, share = compare(network, answer, card["spatial_size"])
                what = (
                    f"largest difference {difference:.1e} of the largest logit, {share:.4%} of voxels differ in class"
                )
                if difference > MAX_DIFFERENCE or share > MAX_VOXELS:
                    raise InputError(f"{path}: not written, {runtime} answers otherwise than torch: {what}")
                print(f"{path.name} in {runtime}: {what}")
            partial.replace(path)
        print(f"Written: {path} ({path.stat().st_size / 1e6:.2f} MB)")


def compare(network: torch.nn.Module, answer: Answer, spatial_size: list[int]) -> tuple[float, float]:
    """The largest difference of logits, relative to the largest logit, and the share of voxels of another class.

    Over volumes of smooth noise scaled to 0-1, on the recipe's grid and on two whose sides are odd or not multiples of
    16, so that a graph that holds for one grid only is found out.
    """
    difference = share = 0.0
    smooth = monai.transforms.GaussianSmooth(sigma=2.0)
    for sides in (spatial_size, (33, 48, 40), (20, 17, 35)):
        torch.manual_seed(0)
        x = monai.transforms.ScaleIntensity()(smooth(torch.rand(1, *sides)))[None]
        with torch.no_grad():
            expected = network(torch.as_tensor(x)).numpy()
        got = answer(np.ascontiguousarray(x, np.float32))
        difference = max(difference, float(np.abs(got - expected).max() / np.abs(expected).max()))
        share = max(share, float((got.argmax(1) != expected.argmax(1)).mean()))
    return difference, share


def _write_onnx(network: MeshNet, path: Path, card: dict) -> None:
    for package in ("onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--formats onnx: {package} is not installed; pip install onnxscript onnxruntime")
    sides = {axis: torch.export.Dim(name, min=4, max=1024) for axis, name in ((2, "d"), (3, "h"), (4, "w"))}
    with torch.no_grad():
        program = torch.onnx.export(
            network, (torch.rand(1, 1, 32, 40, 48),), input_names=["image"], output_names=["pred"],
            dynamic_shapes={"x": sides}, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    program.model.metadata_props.update({key: json.dumps(value) for key, value in card.items()})
    program.save(path)


def _write_torchscript(network: MeshNet, path: Path, card: dict) -> None:
    metadata = json.loads((BUNDLE / "metadata.json").read_text())
    inference = (BUNDLE / "configs" / "inference.json").read_bytes()  # MONAI Deploy reads it from the file
    files = {"inference.json": inference, "card.json": json.dumps(card).encode()}
    save_net_with_metadata(torch.jit.script(network), str(path), meta_values=metadata, more_extra_files=files)


def _runtimes(path: Path) -> dict[str, Answer]:
    if path.suffix == ".ts":
        scripted = torch.jit.load(path)
        return {"TorchScript": lambda x: scripted(torch.from_numpy(x)).detach().numpy()}
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    runtimes = {"ONNX Runtime": lambda x: session.run(None, {"image": x})[0]}
    if importlib.util.find_spec("openvino"):
        import openvino

        model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        runtimes["OpenVINO"] = lambda x: model(x)[0]
    return runtimes
