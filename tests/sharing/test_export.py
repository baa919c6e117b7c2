"""An export answers as the network does on any grid, or there is no export."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.data import load_net_with_metadata

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.sharing import export as exporting

onnxruntime = pytest.importorskip("onnxruntime", reason="exporting to ONNX needs onnxruntime")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with running statistics of its own, and its card."""
    torch.manual_seed(0)
    path, network = tmp_path_factory.mktemp("weights") / "mine.pt", MeshNet(channels=5)
    for _ in range(5):
        network(torch.rand(1, 1, 32, 32, 32))
    torch.save(network.state_dict(), path)
    card = {"channels": 5, "spacing": [6, 6, 6], "spatial_size": [32, 48, 32], "simulated": True}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The command, run from another directory, and what it printed."""
    folder = tmp_path_factory.mktemp("exported")
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), "--ckpt_path", str(weights), "--output_dir", "out"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def test_both_files_are_written_and_nothing_else(exported: tuple) -> None:
    assert sorted(path.name for path in exported[0].iterdir()) == ["mine.onnx", "mine.ts"]
    assert "mine.onnx in ONNX Runtime: largest difference" in exported[1]
    assert "mine.ts in TorchScript: largest difference" in exported[1]


@pytest.mark.parametrize("sides", [(32, 48, 32), (19, 33, 40), (96, 16, 5)])
def test_they_answer_as_the_network_on_any_grid(exported: tuple, weights: Path, sides: tuple) -> None:
    network = MeshNet(channels=5).eval()
    network.load_state_dict(torch.load(weights))
    x = torch.rand(1, 1, *sides)
    with torch.no_grad():
        expected = network(x).numpy()
        names = ["card.json", "inference.json"]
        scripted, metadata, extra = load_net_with_metadata(str(exported[0] / "mine.ts"), more_extra_files=names)
        np.testing.assert_allclose(scripted(x).numpy(), expected, rtol=1e-3, atol=1e-4)
    session = onnxruntime.InferenceSession(exported[0] / "mine.onnx")
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, rtol=1e-3, atol=1e-4)
    assert json.loads(extra["card.json"])["spacing"] == [6, 6, 6]
    assert json.loads(extra["inference.json"])["network_def"]["_target_"] == "scripts.networks.meshnet.MeshNet"
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "lesion"
    assert session.get_modelmeta().custom_metadata_map["spacing"] == "[6, 6, 6]"


@pytest.mark.parametrize("formats", ["onnx", "torchscript"])
def test_a_file_that_answers_otherwise_is_not_left(
    weights: Path, tmp_path: Path, formats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"onnx": "_write_onnx", "torchscript": "_write_torchscript"}[formats]
    write = getattr(exporting, name)

    def write_another(network: MeshNet, path: Path, card: dict) -> None:
        other = MeshNet(channels=5).eval()
        other.load_state_dict({k: v + 0.01 for k, v in network.state_dict().items()}, strict=True)
        write(other, path, card)

    monkeypatch.setattr(exporting, name, write_another)
    with pytest.raises(InputError, match=r"not written, .* answers otherwise than torch"):
        exporting.export(str(weights), str(tmp_path / "out"), formats)
    assert list((tmp_path / "out").iterdir()) == []


def test_wrong_arguments_are_one_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--formats coreml: expected onnx, torchscript or both$"):
        exporting.export(str(weights), formats="coreml")
    with pytest.raises(InputError, match="no such file"):
        exporting.export(str(tmp_path / "none.pt"))
    other = tmp_path / "other.pt"
    torch.save(MeshNet(channels=8).state_dict(), other)
    other.with_suffix(".json").write_text(weights.with_suffix(".json").read_text())
    with pytest.raises(InputError, match="weights of another width"):
        exporting.export(str(other))
