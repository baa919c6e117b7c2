"""Every implementation gets the same weights and volume, and is measured in time and memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from scripts.benchmarking.case import measure

BUNDLE = {"_target_": "scripts.networks.meshnet.MeshNet", "channels": "@channels"}
DILATED = {"_target_": "scripts.benchmarking.case.DilatedMeshNet", "channels": "@channels"}


def run(folder: Path, network: dict, **others: object) -> dict:
    case = {"mode": "inference", "channels": 5, "grid": [16, 32, 16], "engine": "eager", "amp": False}
    case |= {"amp_dtype": "auto", "channels_last": False, "device": "cpu", "threads": 2, "needs": []}
    case |= {"min_seconds": 0.0}
    return measure(case | {"network": network, "is_reference": False, "reference": str(folder / "o.npy")} | others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    result = run(folder, DILATED, is_reference=True)
    assert (result["max_difference"], result["parameters"]) == (0, 5_682)
    return folder


def test_the_reference_is_the_dilated_network_with_activations_of_a_usual_size(folder: Path) -> None:
    output = np.load(folder / "o.npy")
    assert output.shape == (1, 2, 16, 32, 16)
    assert 0.1 < output.std() < 10
    assert 0.01 < (output.argmax(1)).mean() < 0.99  # both classes, so that a difference would show


def test_this_bundle_agrees_with_it(folder: Path) -> None:
    result = run(folder, BUNDLE, channels_last=True)
    assert result["max_difference"] < 1e-3
    assert result["different_voxels"] < 1e-3
    assert result["seconds"] > 0


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_what_is_exported_agrees_with_it(folder: Path, package: str) -> None:
    pytest.importorskip("onnxscript", reason="exporting to ONNX needs onnxscript")
    pytest.importorskip(package, reason=f"{package} is not installed")
    assert run(folder, DILATED, engine=package)["max_difference"] < 1e-3


def test_another_network_has_a_large_difference(folder: Path) -> None:
    assert run(folder, BUNDLE | {"dilations": [1] * 9})["max_difference"] > 0.1


def test_a_training_step_is_measured_too(folder: Path) -> None:
    assert run(folder, BUNDLE, mode="training", reference=str(folder / "none.npy"))["seconds"] > 0


@pytest.mark.slow
def test_memory_of_a_step_is_what_its_layers_keep_and_checkpointing_halves_it(folder: Path) -> None:
    need = {}
    for layers in (0, 2):
        network = BUNDLE | {"channels": 16, "checkpoint_layers": layers}
        options = {"mode": "memory", "channels": 16, "grid": None, "channels_last": True, "amp": True}
        options["amp_dtype"] = "bfloat16"
        need[layers] = run(folder, network, **options)["bytes_per_voxel"]
    kept = 9 * 2 * 16 * 2  # of nine layers what is convolved and what is normalized, in 2 bytes
    assert kept < need[0] < 1.4 * kept  # and the gradients that flow through one layer
    assert need[2] < 0.5 * need[0]


def test_a_package_that_is_missing_is_named(folder: Path) -> None:
    assert run(folder, BUNDLE, needs=["torch", "no_such_package"]) == {"skipped": "no_such_package not installed"}


PEAK = """
import numpy as np
from scripts.benchmarking.case import _peak, _reset_peak
before = _reset_peak("cpu")
for _ in range(3):
    block = np.ones(100_000_000, np.uint8)
    del block
print(_peak("cpu") - before, _reset_peak("cpu") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_that_of_what_was_held_at_once() -> None:
    # in a process of its own, as the benchmark measures: what other tests have left may be freed at any moment
    command = [sys.executable, "-c", PEAK]
    printed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak, afterwards = map(int, printed.split())
    assert peak == pytest.approx(100e6, rel=0.05)
    assert afterwards < 50e6


def test_a_head_in_air_is_computed_in_a_box_and_compared_with_nothing(folder: Path) -> None:
    head = {"_target_": "scripts.benchmarking.case.HeadMeshNet", "channels": "@channels"}
    result = run(folder, head, channels_last=True)
    assert result["parameters"] == 5_682
    assert "different_voxels" not in result


def test_openvino_answers_in_the_benchmark_as_the_reference_does(folder: Path) -> None:
    pytest.importorskip("openvino")
    network = {"_target_": "scripts.benchmarking.case.OpenVINOMeshNet", "channels": "@channels"}
    assert run(folder, network)["max_difference"] < 1e-3
