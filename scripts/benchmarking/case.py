"""torch.utils.benchmark times statements in one process: this measures one implementation in a process of its own."""

import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.optim.swa_utils import update_bn

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.common.errors import print_cause
from scripts.networks.meshnet import MeshNet
from scripts.training.losses import WeightedCrossEntropyLoss
from scripts.training.precision import AutocastInferer

Step = Callable[[], torch.Tensor]


class DilatedMeshNet(MeshNet):
    """The same network with dilated convolutions, layer after layer, as one would write it in torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W)."""
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x)


def measure(case: dict) -> dict:
    """Run one case and say how long it took and how much memory.

    Args:
        case: ``mode`` ("inference", "training", "memory" or "rates"), ``network`` (a config), ``channels``, ``grid``,
            ``engine`` ("eager", "torch.compile", "onnxruntime" or "openvino"), ``precision``, ``channels_last``,
            ``device``, ``threads``, ``needs`` (packages), ``min_seconds`` to repeat for, and ``reference``, a file with
            the outputs to compare with, which is written if ``is_reference``.

    Returns:
        For "memory" ``bytes_per_voxel`` of a training step at its peak, for "rates" what the CPU can do; else
        ``seconds`` (the median of its repeats), ``first_seconds`` (of the first, warming up), ``parameters``,
        ``peak_bytes`` above what the process held before, ``max_difference`` from the reference's logits and
        ``different_voxels``, the share with another class; or ``skipped`` and why.
    """
    torch.set_num_threads(case["threads"])
    if case["mode"] == "rates":
        return _rates()
    missing = [name for name in case["needs"] if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{', '.join(missing)} not installed"}
    torch.manual_seed(0)
    network = ConfigParser({"channels": case["channels"], "network": case["network"]}).get_parsed_content("network")
    update_bn([torch.rand(1, 1, 32, 32, 32)], network)  # so that activations have a trained network's scale
    network = network.to(case["device"])
    if case["channels_last"]:
        network = network.to(memory_format=torch.channels_last_3d)
    if case["mode"] == "memory":
        return {"bytes_per_voxel": _bytes_per_voxel(case, network)}
    x = torch.rand(1, 1, *case["grid"], device=case["device"])
    with tempfile.TemporaryDirectory() as folder:
        prepare = {"onnxruntime": _onnxruntime, "openvino": _openvino}.get(case["engine"], _torch)
        start = prepare(case, network, x, Path(folder))
        before = _reset_peak(case["device"])
        step = start()
        output, first = _timed(step, case["device"])
        long = first > 10 * case["min_seconds"] and case["engine"] != "torch.compile"  # which compiles in its first
        seconds = [first] if long else []
        while not seconds or sum(seconds) < case["min_seconds"]:
            seconds.append(_timed(step, case["device"])[1])
    result = {
        "seconds": statistics.median(seconds),
        "first_seconds": first,
        "parameters": sum(p.numel() for p in network.parameters()),
        "peak_bytes": _peak(case["device"]) - before,
    }
    return result | _compare(output.detach().float().cpu().numpy(), case)


def _torch(case: dict, network: torch.nn.Module, x: torch.Tensor, _: Path) -> Callable[[], Step]:
    inferer = AutocastInferer(case["precision"], case["device"])
    on_cuda = torch.device(case["device"]).type == "cuda" and case["precision"] != "fp32"
    compiled = torch.compile(network) if case["engine"] == "torch.compile" else network

    def forward() -> torch.Tensor:
        with torch.autocast("cuda", enabled=on_cuda):
            return inferer(x, compiled)

    if case["mode"] == "inference":
        network.eval()
        return lambda: torch.inference_mode()(forward)
    network.train()
    target = torch.randint(0, 2, x.shape, dtype=torch.uint8, device=x.device)
    loss = WeightedCrossEntropyLoss([0.5, 1.0], label_smoothing=0.01).to(x.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=3e-5, eps=1e-4)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        output = forward()
        loss(output, target).backward()
        optimizer.step()
        return output

    return lambda: step


def _bytes_per_voxel(case: dict, network: torch.nn.Module) -> float:
    """Bytes of all tensors at the peak of a training step, for each voxel of the volume; no workspace of libraries.

    Nothing is computed: torch follows the tensors' sizes on two grids, whose difference leaves out what is constant.
    """
    peaks = []
    for side in (64, 128):
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = _torch(case, network, torch.rand(1, 1, side, side, side), Path())()
            tracker = MemTracker()
            with tracker:
                step()
        peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    return (peaks[1] - peaks[0]) / (128**3 - 64**3)


def _export(network: torch.nn.Module, x: torch.Tensor, folder: Path) -> Path:
    path = folder / "model.onnx"
    torch.onnx.export(network.eval(), (x,), path, input_names=["image"], dynamo=True, verbose=False)
    return path


def _onnxruntime(case: dict, network: torch.nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], Step]:
    import onnxruntime

    path, image = _export(network, x, folder), {"image": x.numpy()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case["threads"]

    def start() -> Step:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: torch.from_numpy(session.run(None, image)[0])

    return start


def _openvino(case: dict, network: torch.nn.Module, x: torch.Tensor, folder: Path) -> Callable[[], Step]:
    import openvino

    path, image = _export(network, x, folder), x.numpy()
    hints = {
        "INFERENCE_NUM_THREADS": case["threads"],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[case["precision"]],
    }

    def start() -> Step:
        request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
        return lambda: torch.from_numpy(request.infer([image], share_outputs=True)[0])

    return start


def _timed(step: Step, device: str) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    output = step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return output, time.perf_counter() - start


def _compare(output: np.ndarray, case: dict) -> dict:
    if case["is_reference"]:
        np.save(case["reference"], output)
    if not Path(case["reference"]).is_file() or not case["channels"]:
        return {}
    expected = np.load(case["reference"])
    return {
        "max_difference": float(np.abs(output - expected).max()),
        "different_voxels": float((output.argmax(1) != expected.argmax(1)).mean()),
    }


def _reset_peak(device: str) -> int:
    """Forget the peak so far and return what is held now, in bytes."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return 0
    Path("/proc/self/clear_refs").write_text("5")  # of Linux, see proc(5)
    return _peak(device)


def _peak(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _rates() -> dict:
    """What the CPU can do: multiplying matrices, in operations a second, and copying, in bytes read and written."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.rand(2048, 2048).to(dtype)
        rates[name] = 2 * 2048**3 / min(_timed(lambda a=a: a @ a, "cpu")[1] for _ in range(10))
    source = torch.zeros(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    rates["bytes"] = 2 * 2**28 / min(_timed(lambda: target.copy_(source), "cpu")[1] for _ in range(10))
    return rates


if __name__ == "__main__":
    sys.excepthook = print_cause
    answer = measure(json.loads(sys.argv[1]))
    print(json.dumps(answer))
