"""A published model becomes weights with a card that the bundle can use, and ours come back as they were."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import INFERENCE, ROOT, command, write
from monai.bundle import ConfigWorkflow

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.sharing import layers_model
from scripts.sharing.export import export
from scripts.sharing.import_weights import import_weights
from scripts.weights.card import network_from_card, read_card
from scripts.weights.checkpoint import write_weights
from scripts.weights.weights import Weights

RELEASED = ROOT / "models" / "model_5.pt"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A model of another's, of which nothing but the graph is known."""
    torch.manual_seed(0)
    (tmp_path / "theirs").mkdir()
    network = MeshNet(channels=3, out_channels=3, dilations=[1, 2], act="elu", norm=None)
    layers_model.write(network, tmp_path / "theirs" / "model.json", "elu", None)
    return tmp_path / "theirs" / "model.json"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released weights, exported by the one command and imported by the other from another directory."""
    folder = tmp_path_factory.mktemp("imported")
    command(folder, "export", "--ckpt_path", RELEASED, "--output_dir", "out", "--formats", "brainchop")
    command(folder, "import_weights", "--path", "out/model_5_brainchop/model.json", "--output", "mine.pt")
    assert sorted(p.name for p in folder.rglob("*")) == [
        "mine.json", "mine.pt", "model.bin", "model.json", "model_5_brainchop", "out",
    ]  # fmt: skip
    return folder / "mine.pt"


@pytest.mark.slow
def test_weights_that_went_to_tensorflow_js_and_back_answer_as_before(imported: Path) -> None:
    x = torch.rand(1, 1, 48, 33, 40)
    with torch.no_grad():
        before, after = (Weights(str(path)).network().eval()(x) for path in (RELEASED, imported))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert (after.argmax(1) != before.argmax(1)).float().mean() < 1e-4


@pytest.mark.slow
def test_and_their_card_says_what_it_said_but_for_the_norm(imported: Path) -> None:
    before, after = read_card(str(RELEASED)), read_card(str(imported))
    assert {key: after[key] for key in before if key != "network_def"} == {
        key: value for key, value in before.items() if key != "network_def"
    }
    assert after["network_def"]["norm"] is None


@pytest.mark.slow
def test_they_give_the_same_mask(imported: Path, tmp_path: Path) -> None:
    bright = np.zeros((24, 30, 20), np.float32)
    bright[2:22, 2:28, 2:18], bright[14:18, 8:22, 6:14] = 30 + np.linspace(0, 1, 16), 100
    scan, masks = write(tmp_path / "sub-1_T2w.nii.gz", bright, np.diag([-6.0, 6.0, 6.0, 1.0])), []
    for weights in (RELEASED, imported):
        paths = {"input": str(scan), "output_dir": str(tmp_path / weights.stem), "ckpt_path": str(weights)}
        settings = {"amp": False, "qc": False, "device": "cpu", "threshold": 0.3}
        workflow = ConfigWorkflow(INFERENCE, workflow_type="infer", logging_file=False, **paths, **settings)
        workflow.initialize()
        workflow.run()
        masks.append(np.asarray(nib.load(tmp_path / weights.stem / "sub-1_desc-lesion_mask.nii.gz").dataobj))
    assert 50 < masks[0].sum() < 5000
    assert (masks[0] != masks[1]).sum() <= 1


def test_a_model_of_which_nothing_is_known_is_taken_as_brainchop_takes_scans(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labels = {"R": [0, 1, 2], "labels": ["background", "white", "grey"]}
    published.with_name("colormap.json").write_text(json.dumps(labels))
    import_weights(str(published), str(tmp_path / "new.pt"), license="MIT", quantiles=True)
    card = json.loads((tmp_path / "new.json").read_text())
    assert card["network_def"] == {
        "_target_": "scripts.networks.meshnet.MeshNet",
        "in_channels": 1, "out_channels": 3, "channels": 3, "dilations": [1, 2], "act": "elu", "norm": None,
    }  # fmt: skip
    assert (card["spacing"], card["spatial_size"], card["orientation"]) == ([1, 1, 1], [256, 256, 256], "LIA")
    assert (card["license"], card["classes"], "trained_on" in card) == ("MIT", labels["labels"], False)
    assert card["intensity"][0]["lower"] == 5
    read_card(str(tmp_path / "new.pt"))
    assert "new.pt and its card (342 parameters, 3 classes)" in capsys.readouterr().out


def test_nothing_that_is_there_is_replaced_and_nothing_half_is_left(published: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("mine")
    with pytest.raises(InputError, match=r"mine.json: is there already, so not replaced; give another --output"):
        import_weights(str(published), str(tmp_path / "mine.pt"))
    with pytest.raises(InputError, match=r"--output .*: expected a name that ends with .pt"):
        import_weights(str(published), str(tmp_path / "mine.json"))
    published.with_name("model.bin").unlink()
    with pytest.raises(InputError, match=r"model.bin: cannot be read"):
        import_weights(str(published), str(tmp_path / "new.pt"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.json", "theirs"]


REFUSED = {
    "network_def: AdaptiveBatchNorm3d of each scan is no layer": {"channels": 2, "norm_adaptation": 0.5},
    "network_def: InstanceNorm3d of each scan is no layer of TensorFlow.js": {"channels": 2, "norm": "instance"},
    r"network_def: act \['elu', {'alpha': 2}\] is none": {"channels": 2, "act": ["elu", {"alpha": 2}]},
    "network_def: a SegResNet cannot be written": {"_target_": "SegResNet", "spatial_dims": 3, "out_channels": 2},
}


@pytest.mark.parametrize("line", REFUSED)
def test_a_network_that_tensorflow_js_cannot_express_is_one_line(line: str, tmp_path: Path) -> None:
    card = {"network_def": {"_target_": "scripts.networks.meshnet.MeshNet", **REFUSED[line]}}
    card |= {"spacing": [6, 6, 6], "spatial_size": [16, 16, 16], "intensity": []}
    write_weights(tmp_path / "model.pt", network_from_card(card), card)
    with pytest.raises(InputError, match=line):
        export(str(tmp_path / "model.pt"), str(tmp_path / "out"), "brainchop")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", [0.01, float("nan")])
def test_files_that_answer_otherwise_are_not_written(
    tmp_path: Path, change: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = layers_model.read

    def read_others(path: Path) -> tuple[dict, dict, dict]:
        arguments, state, metadata = read(path)
        return arguments, {name: value + change for name, value in state.items()}, metadata

    monkeypatch.setattr(layers_model, "read", read_others)
    with pytest.raises(InputError, match=r"model.json: not written, the importer answers otherwise than torch"):
        export(str(RELEASED), str(tmp_path / "out"), "brainchop")
    assert list(tmp_path.iterdir()) == []
