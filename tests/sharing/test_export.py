"""An export answers as the network does on any grid, or there is no export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from monai.data import load_net_with_metadata

from scripts.common.errors import InputError
from scripts.networks.adaptive_norm import norm_shift
from scripts.networks.meshnet import MeshNet
from scripts.sharing import export as exporting
from scripts.weights.checkpoint import write_weights

onnxruntime = pytest.importorskip("onnxruntime", reason="exporting to ONNX needs onnxruntime")


def save(path: Path, **arguments: object) -> Path:
    """A network with running statistics of its own, and its card."""
    torch.manual_seed(0)
    network = MeshNet(**arguments)
    for _ in range(5):
        network(torch.rand(1, arguments.get("in_channels", 1), 16, 16, 16))
    definition = {"_target_": "scripts.networks.meshnet.MeshNet", **arguments}
    card = {"network_def": definition, "spacing": [6, 6, 6], "spatial_size": [32, 48, 32], "simulated": True}
    write_weights(path, network, card | {"intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}]})
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "mine.pt", channels=5)


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves, run from another directory."""
    folder = tmp_path_factory.mktemp("exported")
    command(folder, "export", "--ckpt_path", weights, "--output_dir", "out")
    return folder / "out"


def test_the_three_files_are_written_and_nothing_else(exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["mine.onnx", "mine.pt2", "mine.ts"]


@pytest.mark.parametrize("sides", [(32, 48, 32), (19, 33, 40), (96, 16, 5)])
def test_they_answer_as_the_network_on_any_grid(exported: Path, weights: Path, sides: tuple) -> None:
    network = MeshNet(channels=5).eval()
    network.load_state_dict(torch.load(weights))
    x = torch.rand(1, 1, *sides)
    with torch.no_grad():
        expected = network(x).numpy()
        names = ["card.json", "inference.json"]
        scripted, metadata, extra = load_net_with_metadata(str(exported / "mine.ts"), more_extra_files=names)
        np.testing.assert_allclose(scripted(x).numpy(), expected, rtol=1e-3, atol=1e-4)
    about = {"card.json": ""}
    program = torch.export.load(exported / "mine.pt2", extra_files=about).module()
    np.testing.assert_allclose(program(x).detach().numpy(), expected, rtol=1e-3, atol=1e-4)
    assert json.loads(about["card.json"])["spacing"] == [6, 6, 6]
    session = onnxruntime.InferenceSession(exported / "mine.onnx")
    np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, rtol=1e-3, atol=1e-4)
    assert json.loads(extra["card.json"])["spacing"] == [6, 6, 6]
    assert "network_def" in json.loads(extra["inference.json"])
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] == "lesion"
    assert session.get_modelmeta().custom_metadata_map["spacing"] == "[6, 6, 6]"


def test_a_network_is_what_its_card_says_not_what_is_shipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = save(tmp_path / "other.pt", channels=4, in_channels=2, out_channels=3, dilations=[1, 2, 3], dropout=0.1)
    exporting.export(str(path))
    session = onnxruntime.InferenceSession(tmp_path / "other.onnx")
    assert session.run(None, {"image": np.zeros((1, 2, 9, 8, 7), np.float32)})[0].shape == (1, 3, 9, 8, 7)
    assert "other.onnx in ONNX Runtime: largest difference" in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_that_adapts_to_the_scan_does_so_when_exported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = save(tmp_path / "adaptive.pt", channels=4, norm_adaptation=0.5)
    exporting.export(str(path))  # which compares with torch on three grids
    assert capsys.readouterr().out.count("largest difference") == 3 + exporting.has_openvino


@pytest.mark.slow
def test_an_export_chooses_by_the_scan_as_inference_does(tmp_path: Path) -> None:
    near, far = torch.rand(1, 1, 12, 10, 14), 0.2 * torch.rand(1, 1, 12, 10, 14) ** 4
    network = MeshNet(channels=4)
    network.load_state_dict(torch.load(save(tmp_path / "limited.pt", channels=4, norm_adaptation=0.5)))
    shifts = [norm_shift(*network.layers[0][:2], x).item() for x in (near, far)]
    limits = {"norm_adaptation": 0.5, "norm_shift_limit": sum(shifts) / 2}
    path, network = save(tmp_path / "limited.pt", channels=4, **limits), MeshNet(channels=4, **limits).eval()
    network.load_state_dict(torch.load(path))
    assert [network.adaptation_to(x) for x in (near, far)] == [0, 0.5]
    exporting.export(str(path))
    session, scripted = onnxruntime.InferenceSession(tmp_path / "limited.onnx"), torch.jit.load(tmp_path / "limited.ts")
    for x in (near, far):
        with torch.no_grad():
            expected = network(x)
        np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], expected, atol=1e-4)
        torch.testing.assert_close(scripted(x).detach(), expected, atol=1e-4, rtol=1e-4)


def test_what_cannot_normalize_by_the_scan_is_refused_unless_asked_not_to(tmp_path: Path) -> None:
    path = save(tmp_path / "limited.pt", channels=4, norm_adaptation=0.5, norm_shift_limit=0.02)
    with pytest.raises(InputError, match=r"limited.pt: normalizes by the scan, which brainchop cannot; give --norm_ad"):
        exporting.export(str(path), formats="brainchop")
    exporting.export(str(path), formats="brainchop", norm_adaptation=0)
    assert (tmp_path / "limited_brainchop" / "model.json").is_file()


def test_the_largest_difference_of_logits_is_relative_to_the_largest_logit(weights: Path) -> None:
    network = MeshNet(channels=5).eval()
    network.load_state_dict(torch.load(weights))

    def answer(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return 1.01 * network(torch.from_numpy(x)).numpy()

    error, share = exporting.compare(network, answer, {"spatial_size": [16, 16, 16], "network_def": {}})
    assert error == pytest.approx(0.01, rel=1e-3)
    assert share == 0


@pytest.mark.slow
@pytest.mark.parametrize(("formats", "change"), [("onnx", 0.01), ("pt2", 0.01), ("torchscript", float("nan"))])
def test_a_file_that_answers_otherwise_is_not_written(
    weights: Path, tmp_path: Path, formats: str, change: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"_write_{formats}"
    write = getattr(exporting, name)

    def write_another(network: MeshNet, path: Path, card: dict) -> dict:
        other = MeshNet(channels=5).eval()
        other.load_state_dict({k: v + change if v.is_floating_point() else v for k, v in network.state_dict().items()})
        return write(other, path, card)

    monkeypatch.setattr(exporting, name, write_another)
    with pytest.raises(InputError, match=r"not written, .* answers otherwise than torch"):
        exporting.export(str(weights), str(tmp_path / "out"), formats)
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_one_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--formats coreml: expected some of onnx, pt2, torchscript, brainchop$"):
        exporting.export(str(weights), formats="coreml")
    with pytest.raises(InputError, match="no such file"):
        exporting.export(str(tmp_path / "none.pt"))
    other = tmp_path / "other.pt"
    torch.save(MeshNet(channels=8).state_dict(), other)
    other.with_suffix(".json").write_text(weights.with_suffix(".json").read_text())
    with pytest.raises(InputError, match="weights of another network"):
        exporting.export(str(other))


def test_a_folder_that_cannot_be_written_is_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, so no folder")
    with pytest.raises(InputError, match=r"file/out/mine.ts: cannot be written \(Not a directory\)"):
        exporting.export(str(weights), str(tmp_path / "file" / "out"), "torchscript")
