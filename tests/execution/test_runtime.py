"""OpenVINO is used where it is asked for, or is faster, and can express the network; a line says what is wrong."""

import logging
from collections.abc import Callable

import pytest
import torch

from scripts.common.errors import InputError
from scripts.execution import openvino_runtime, runtime
from scripts.execution.runtime import choose_runtime
from scripts.networks import interleaved
from scripts.networks.meshnet import MeshNet


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "has_openvino", True)


def choose(name: str, device: str = "cpu", **arguments: object) -> Callable:
    return choose_runtime(name, MeshNet(channels=2, dilations=(1, 2), **arguments), None, device)


def test_without_openvino_auto_is_torch_and_asking_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_runtime, "has_openvino", False)
    assert choose("auto") is choose("torch") is interleaved.infer
    with pytest.raises(InputError, match=r"^runtime openvino: it is not installed; pip install openvino"):
        choose("openvino")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("slower", ["torch", "OpenVINO"])
def test_auto_takes_the_faster_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slower: str
) -> None:
    clock, answers = [0.0], {}
    for name, module in (("torch", interleaved), ("OpenVINO", openvino_runtime)):
        seconds = 2.0 if name == slower else 1.0
        answers[name] = lambda *args, seconds=seconds: clock.append(clock.pop() + seconds)
        monkeypatch.setattr(module, "infer", answers[name])
    monkeypatch.setattr(runtime.time, "perf_counter", lambda: clock[0])
    faster = "OpenVINO" if slower == "torch" else "torch"
    with caplog.at_level(logging.INFO, "meshnet"):
        assert choose("auto") is answers[faster]
    assert caplog.messages[0].startswith(f"Computing with {faster} (96x96x96 voxels: torch ")
    assert choose("openvino") is answers["OpenVINO"]


@pytest.mark.usefixtures("installed")
def test_networks_and_devices_that_it_cannot_take_are_computed_by_torch() -> None:
    for arguments in ({"norm": "instance"}, {"act": "gelu"}):
        assert choose("auto", **arguments) is interleaved.infer
        with pytest.raises(InputError, match="MeshNets with ReLU or ELU"):
            choose("openvino", **arguments)
    for limit in (None, 0.3):
        assert choose("openvino", norm_adaptation=0.5, norm_shift_limit=limit) is not interleaved.infer
    assert choose_runtime("auto", torch.nn.Conv3d(1, 2, 1), None, "cpu") is interleaved.infer
    assert choose("auto", device="cuda") is interleaved.infer
    with pytest.raises(InputError, match="not on cuda"):
        choose("openvino", device="cuda")
