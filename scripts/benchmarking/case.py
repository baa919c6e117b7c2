"""Measure one implementation's time and memory: ``python -m scripts.benchmarking.case JSON``."""

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

from scripts.common.errors import print_cause
from scripts.execution import openvino_runtime
from scripts.execution.air import infer_in_air
from scripts.execution.precision import autocast_dtype
from scripts.networks import interleaved
from scripts.networks.meshnet import MeshNet
from scripts.training.losses import WeightedCrossEntropyLoss

Step = Callable[[], torch.Tensor]


class DilatedMeshNet(MeshNet):
    """The same network with dilated convolutions, layer after layer, as one would write it in torch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W)."""
        return self.plain(x)


class HeadMeshNet(MeshNet):
    """The same without air: in inference computed in a box as large as the head of M2265 is in 256x256x256 voxels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W)."""
        if self.training:
            return super().forward(x)
        sides = (int(side * share) for side, share in zip(x.shape[2:], (160 / 256, 208 / 256, 192 / 256), strict=True))
        box = tuple(slice((n - side) // 2, (n + side) // 2) for n, side in zip(x.shape[2:], sides, strict=True))
        return infer_in_air(self.adapted_to(x), x, box, x.new_zeros(x.shape[1]))


class OpenVINOMeshNet(MeshNet):
    """The same as inference's ``--runtime openvino`` computes it, its graph made for each volume."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, D, H, W) to class logits (B, out_channels, D, H, W)."""
        return super().forward(x) if self.training else interleaved.forward(self, x, openvino_runtime.infer)


def measure(case: dict) -> dict:
    """Run one case of ``configs/benchmark.json``, see there, and say how long it took and how much memory.

    ``reference`` is a file with the outputs to compare with, which is written if ``is_reference``.

    Returns:
        For the mode "memory" ``bytes_per_voxel`` of a training step at its peak; else ``seconds`` (the median of its
        repeats), ``first_seconds`` (warming up), ``parameters``, ``peak_bytes`` above what the process held before,
        ``max_difference`` from the reference's logits and ``different_voxels``, the share with another class; or
        ``skipped`` and why.
    """
    torch.set_num_threads(case["threads"])
    missing = [name for name in case["needs"] if importlib.util.find_spec(name) is None]
    if missing:
        return {"skipped": f"{', '.join(missing)} not installed"}
    torch.manual_seed(0)
    network = ConfigParser({"channels": case["channels"], "network": case["network"]}).get_parsed_content("network")
    update_bn([torch.rand(1, 1, 32, 32, 32)], network)  # so that activations have a trained network's scale
    network.to(case["device"], memory_format=torch.channels_last_3d if case["channels_last"] else None)
    if case["mode"] == "memory":
        return {"bytes_per_voxel": _bytes_per_voxel(case, network)}
    device = case["device"]
    x = torch.rand(1, 1, *case["grid"], device=device)
    start = {"onnxruntime": _onnxruntime, "openvino": _openvino}.get(case["engine"], _torch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if start is not _torch:
            torch.onnx.export(network.eval(), (x,), path, input_names=["image"], dynamo=True, verbose=False)
        before = _reset_peak(device)
        step = start(case, network, x, path)
        output, first = _timed(step, device)
        long = first > 10 * case["min_seconds"] and case["engine"] != "torch.compile"  # which compiles in its first
        seconds = [first] if long else []
        while not seconds or sum(seconds) < case["min_seconds"]:
            seconds.append(_timed(step, device)[1])
    result = {"seconds": statistics.median(seconds), "first_seconds": first, "peak_bytes": _peak(device) - before}
    result["parameters"] = sum(p.numel() for p in network.parameters())
    return result | _compare(output.detach().float().cpu().numpy(), case)


def _torch(case: dict, network: torch.nn.Module, x: torch.Tensor, _: Path | None = None) -> Step:
    dtype = autocast_dtype(case["amp"], x.device, case["amp_dtype"])
    compiled = torch.compile(network) if case["engine"] == "torch.compile" else network

    def forward() -> torch.Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            return compiled(x).float()

    if case["mode"] == "inference":
        network.eval()
        return torch.inference_mode()(forward)
    network.train()
    target = torch.randint_like(x, 2).byte()
    loss = WeightedCrossEntropyLoss([0.5, 1.0], 0.01).to(x.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=3e-5, eps=1e-4)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        output = forward()
        loss(output, target).backward()
        optimizer.step()
        return output

    return step


def _onnxruntime(case: dict, network: torch.nn.Module, x: torch.Tensor, path: Path) -> Step:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case["threads"]
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def _openvino(case: dict, network: torch.nn.Module, x: torch.Tensor, path: Path) -> Step:
    import openvino

    hints = {"INFERENCE_NUM_THREADS": case["threads"], "PERFORMANCE_HINT": "LATENCY"}
    hints["INFERENCE_PRECISION_HINT"] = "bf16" if case["amp"] else "f32"
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    return lambda: torch.from_numpy(request.infer([x.numpy()], share_outputs=True)[0])


def _bytes_per_voxel(case: dict, network: torch.nn.Module) -> float:
    """Bytes of all tensors at the peak of a training step, for each voxel of the volume; no workspace of libraries.

    Nothing is computed: torch follows the tensors' sizes on two grids, whose difference leaves out what is constant.
    """
    peaks = []
    for side in (64, 128):
        with FakeTensorMode(allow_non_fake_inputs=True):
            step = _torch(case, network, torch.rand(1, 1, side, side, side))
            tracker = MemTracker()
            with tracker:
                step()
        peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    return (peaks[1] - peaks[0]) / (128**3 - 64**3)


def _timed(step: Step, device: str) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    output = step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return output, time.perf_counter() - start


def _compare(output: np.ndarray, case: dict) -> dict:
    if case["is_reference"]:
        np.save(case["reference"], output)
    is_part = case["network"]["_target_"].endswith("HeadMeshNet")  # of noise that fills the volume
    if not Path(case["reference"]).is_file() or not case["channels"] or is_part:
        return {}
    expected = np.load(case["reference"])
    different = float((output.argmax(1) != expected.argmax(1)).mean())
    return {"max_difference": float(np.abs(output - expected).max()), "different_voxels": different}


def _reset_peak(device: str) -> int:
    """Forget the peak so far and return what is held now, in bytes."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # of Linux, see proc(5)
    return _peak(device)


def _peak(device: str) -> int:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    sys.excepthook = print_cause
    print(json.dumps(measure(json.loads(sys.argv[1]))))
