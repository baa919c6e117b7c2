"""A layers model is read as TensorFlow.js reads it and written so that TensorFlow.js answers as torch does."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import REAL, ROOT
from torch.nn.functional import conv3d, elu, gelu, instance_norm, pad

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.sharing import layers_model
from scripts.sharing.layers_model import ACTIVATIONS
from scripts.weights.weights import Weights

RELEASED = str(ROOT / "models" / "model_5.pt")
PACKAGES = [f"@tensorflow/tfjs-{part}@4.22.0" for part in ("core", "layers", "backend-cpu")]  # of @tensorflow/tfjs
PREDICT = """
import fs from "node:fs";
import http from "node:http";
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-cpu";
import { loadLayersModel } from "@tensorflow/tfjs-layers";
const server = http.createServer((request, response) => fs.createReadStream(request.url).pipe(response));
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
for (const folder of process.argv.slice(2)) {
  const model = await loadLayersModel(`http://127.0.0.1:${server.address().port}${folder}/model.json`);
  for (const shape of JSON.parse(fs.readFileSync(`${folder}/shapes.json`))) {
    const name = `${folder}/${shape.join("x")}`;
    const image = new Float32Array(new Uint8Array(fs.readFileSync(`${name}.image`)).buffer);
    fs.writeFileSync(`${name}.pred`, Buffer.from((await model.predict(tf.tensor(image, shape)).data()).buffer));
  }
  await model.save({ save: async (saved) => {
    fs.mkdirSync(`${folder}/saved`);
    fs.writeFileSync(`${folder}/saved/weights.bin`, Buffer.from(saved.weightData));
    const weightsManifest = [{ paths: ["weights.bin"], weights: saved.weightSpecs }];
    fs.writeFileSync(`${folder}/saved/model.json`, JSON.stringify({ ...saved, weightData: null, weightsManifest }));
    return {};
  } });
}
server.close();
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """A function that has TensorFlow.js load, run and save again the models in some folders."""
    if not shutil.which("npm"):
        pytest.skip("running TensorFlow.js needs node and npm")
    home = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
    try:
        subprocess.run(command, cwd=home, check=True, capture_output=True, timeout=120)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"TensorFlow.js could not be installed: {str(error.stderr)[-200:]}")
    (home / "predict.mjs").write_text(PREDICT)

    def run(folders: list[Path]) -> None:
        result = subprocess.run(["node", "predict.mjs", *folders], cwd=home, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]

    yield run
    shutil.rmtree(home)


def trained(**arguments: object) -> MeshNet:
    """A network with running statistics of its own."""
    torch.manual_seed(0)
    network = MeshNet(**arguments)
    for _ in range(5):
        network(torch.rand(1, network.layers[0][0].in_channels, 12, 12, 12))
    return network.eval()


CASES = {
    **{act: {"channels": 3, "dilations": [1, 2], "act": act, "norm": None} for act in ACTIVATIONS},
    "in 2, out 3": {"in_channels": 2, "out_channels": 3, "channels": 4, "dilations": [1, 4, 2], "dropout": 0.5},
    "no affine": {"channels": 3, "dilations": [1, 16], "norm": ["batch", {"affine": False}]},
    "released": None,
}
SIDES = [(16, 9, 13), (7, 10, 8)]


@pytest.fixture(scope="module")
def answers(node: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[MeshNet, Path]]:
    """The networks, and the folders with what TensorFlow.js answered."""
    root, cases = tmp_path_factory.mktemp("models"), {}
    for i, (name, arguments) in enumerate(CASES.items()):
        network = trained(**arguments) if arguments else Weights(RELEASED).network().eval()
        folder = root / str(i)
        folder.mkdir()
        layers_model.write(network, folder / "model.json", (arguments or {}).get("act", "relu"), {"any": "thing"})
        n_inputs = network.layers[0][0].in_channels
        shapes = [(1, *sides, n_inputs) for sides in SIDES]
        for shape in shapes:
            torch.rand(shape).numpy().tofile(folder / f"{'x'.join(map(str, shape))}.image")
        (folder / "shapes.json").write_text(json.dumps(shapes))
        cases[name] = (network, folder)
    node([folder for _, folder in cases.values()])
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_tensorflow_js_answers_as_torch_voxel_for_voxel(answers: dict, case: str) -> None:
    network, folder = answers[case]
    for shape in json.loads((folder / "shapes.json").read_text()):
        name = "x".join(map(str, shape))
        image = torch.from_numpy(np.fromfile(folder / f"{name}.image", "<f4").reshape(shape)).permute(0, 4, 1, 2, 3)
        with torch.no_grad():
            expected = network.plain(image).permute(0, 2, 3, 4, 1).numpy()
        got = np.fromfile(folder / f"{name}.pred", "<f4").reshape(expected.shape)
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["elu", "in 2, out 3", "released"])
def test_what_tensorflow_js_saves_is_read(answers: dict, case: str) -> None:
    network, folder = answers[case]
    arguments, state, _ = layers_model.read(folder / "saved" / "model.json")
    again, x = MeshNet(**arguments).eval(), torch.rand(1, arguments["in_channels"], 9, 12, 10)
    again.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(again(x), network(x), rtol=1e-5, atol=1e-5)


PATIENT = REAL / "patients"


@pytest.mark.slow
@pytest.mark.skipif(not PATIENT.is_dir(), reason="no published network beside this checkout")
def test_a_published_network_gives_the_published_mask_in_a_box_at_the_lesions_edge() -> None:
    arguments, state, _ = layers_model.read(PATIENT / "t2lesion" / "model.json")
    network = MeshNet(**arguments).eval()
    network.load_state_dict(state)
    assert sum(p.numel() for p in network.parameters()) == 26_556
    scan = np.asarray(nib.load(PATIENT / "M2265_T2w.nii.gz").dataobj, np.float32)
    scan = (scan - scan.min()) / (scan.max() - scan.min())
    box, seen = np.s_[150:170, 78:98, 110:130], np.s_[104:216, 32:144, 64:176]  # 46 voxels see 46 to each side
    mask = np.asarray(nib.load(PATIENT / "M2265_T2lesion_mask.nii.gz").dataobj)[box]
    with torch.no_grad():
        logits = network(torch.from_numpy(scan[seen].copy())[None, None])[0, :, 46:66, 46:66, 46:66]
    got = logits.argmax(0).numpy()
    assert 0.2 < mask.mean() < 0.8
    assert 2 * (got * mask).sum() / (got.sum() + mask.sum()) > 0.999


@pytest.fixture
def model_json(tmp_path: Path) -> Path:
    network = trained(channels=3, dilations=[1, 2], act="elu", norm=None)
    layers_model.write(network, tmp_path / "model.json", "elu", {})
    return tmp_path / "model.json"


def layers_of(model: dict) -> list[dict]:
    return model["modelTopology"]["model_config"]["config"]["layers"]


def set_config(index: int, **values: object) -> Callable:
    return lambda model: layers_of(model)[index]["config"].update(values)


def insert_batch_normalization(model: dict) -> None:
    layers_of(model).insert(2, {"class_name": "BatchNormalization", "config": {"name": "bn"}, "inbound_nodes": []})


WRONG = {
    "layer bn: a BatchNormalization, which MeshNet has not": insert_batch_normalization,
    "layer conv3d_1: strides .2, 2, 2., where a MeshNet has": set_config(3, strides=[2, 2, 2]),
    "layer conv3d_1: kernel_size .5, 5, 5., where": set_config(3, kernel_size=[5, 5, 5]),
    "layer conv3d_1: dilation_rate .1, 2, 1., where a MeshNet has .1, 1, 1.": set_config(3, dilation_rate=[1, 2, 1]),
    "layer conv3d_1: padding valid, where": set_config(3, padding="valid"),
    "layer conv3d_1: filters 4, where a MeshNet has 3": set_config(3, filters=4),
    "layer conv3d_1: activation relu, where a MeshNet has elu": set_config(4, activation="relu"),
    "layer conv3d_0: data_format channels_first, where": set_config(1, data_format="channels_first"),
    "layer output: activation softmax, where a MeshNet has linear": set_config(5, activation="softmax"),
    r"layer output: weights of shape .* do not fit": set_config(5, filters=3),
    "layer conv3d_1: takes input; in a MeshNet each layer takes the one before": lambda model: layers_of(model)[
        3
    ].update(inbound_nodes=[[["input", 0, 0, {}]]]),
    "conv3d_0/kernel is int32": lambda model: model["weightsManifest"][0]["weights"][0].update(dtype="int32"),
    "model.bin: ends within output/bias": lambda model: model["weightsManifest"][0]["weights"][-1].update(shape=[9]),
    "model.bin: .* bytes, but model.json lists": lambda model: model["weightsManifest"][0]["weights"].pop(),
    "gone.bin: cannot be read": lambda model: model["weightsManifest"][0].update(paths=["gone.bin"]),
    "KeyError 'config'; expected a TensorFlow.js layers model": lambda model: model.update(modelTopology={"node": []}),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_no_meshnet_has_is_one_line_that_names_it(model_json: Path, line: str) -> None:
    model = json.loads(model_json.read_text())
    WRONG[line](model)
    model_json.write_text(json.dumps(model))
    with pytest.raises(InputError, match=line) as error:
        layers_model.read(model_json)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused(model_json: Path) -> None:
    values = np.fromfile(model_json.with_name("model.bin"), "<f4")
    values[3] = np.nan
    values.tofile(model_json.with_name("model.bin"))
    with pytest.raises(InputError, match="conv3d_0/kernel has values that are not finite"):
        layers_model.read(model_json)


@pytest.mark.parametrize(("dtype", "levels"), [("uint8", 255), ("uint16", 65535), ("float16", None)])
def test_weights_of_fewer_bits_in_several_files_are_read(model_json: Path, dtype: str, levels: int | None) -> None:
    _, exact, _ = layers_model.read(model_json)
    model, kept = json.loads(model_json.read_text()), np.fromfile(model_json.with_name("model.bin"), "<f4")
    written, start = b"", 0
    for weight in model["weightsManifest"][0]["weights"]:
        values = kept[start : (start := start + int(np.prod(weight["shape"])))]
        weight["quantization"] = {"dtype": dtype}
        if levels:
            low, scale = float(values.min()), float(np.ptp(values) / levels) or 1.0
            weight["quantization"] |= {"min": low, "scale": scale}
            values = np.round((values - low) / scale)
        written += values.astype(dtype).tobytes()
    for name, part in (("a.bin", written[:101]), ("b.bin", written[101:])):
        model_json.with_name(name).write_bytes(part)
    model["weightsManifest"][0]["paths"] = ["a.bin", "b.bin"]
    model_json.write_text(json.dumps(model))
    _, read, _ = layers_model.read(model_json)
    for name, values in exact.items():
        step = np.ptp(values.numpy()) / levels if levels else 1e-3 * values.abs().max()
        assert (read[name] - values).abs().max() <= 0.51 * step + 1e-7


def test_convolutions_named_gn_are_followed_by_instance_normalization(tmp_path: Path) -> None:
    network = trained(channels=3, dilations=[1, 2], act="gelu", norm=None)
    layers_model.write(network, tmp_path / "model.json", "gelu", {})
    text = (tmp_path / "model.json").read_text()
    for i in range(2):
        text = text.replace(f'"conv3d_{i}', f'"conv3d_{i}_gn')
    (tmp_path / "model.json").write_text(text)
    arguments, state, _ = layers_model.read(tmp_path / "model.json")
    again, x = MeshNet(**arguments).eval(), torch.rand(1, 1, 8, 9, 7)
    again.load_state_dict(state)
    with torch.no_grad():
        expected = x
        for layer, dilation in zip(network.layers, (1, 2), strict=True):
            expected = conv3d(expected, layer[0].weight, padding=dilation, dilation=dilation)
            expected = gelu(instance_norm(expected, eps=1e-5))
        expected = network.classifier(expected)
        torch.testing.assert_close(again(x), expected, rtol=1e-4, atol=1e-4)


def test_kernels_are_read_by_hand_from_the_bytes(model_json: Path) -> None:
    bytes_ = np.fromfile(model_json.with_name("model.bin"), "<f4")
    arguments, state, _ = layers_model.read(model_json)
    network, x = MeshNet(**arguments).eval(), torch.rand(6, 5, 7)
    network.load_state_dict(state)
    kernel, padded, expected = bytes_[:81].reshape(3, 3, 3, 1, 3), pad(x, [1] * 6).numpy(), np.zeros((3, 6, 5, 7))
    for d, h, w in np.ndindex(3, 3, 3):
        for channel in range(3):
            expected[channel] += kernel[d, h, w, 0, channel] * padded[d : d + 6, h : h + 5, w : w + 7]
    expected += bytes_[81:84].reshape(3, 1, 1, 1)
    with torch.no_grad():
        got = network.layers[0](x[None, None])[0]
    torch.testing.assert_close(got, elu(torch.from_numpy(expected).float()), rtol=1e-5, atol=1e-5)
