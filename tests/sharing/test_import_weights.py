"""A PyTorch checkpoint that others published becomes weights that answer as theirs do."""

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from scripts.common.errors import InputError
from scripts.sharing.import_weights import import_weights
from scripts.weights.weights import Weights

REAL = ROOT.parent / "shared" / "real"
DILATIONS = [1, 2, 4, 8, 16, 16, 8, 4, 2]


def theirs(
    channels: int, names: tuple[str, str], dilations: list[int], bias: bool = True, classes: int = 2
) -> nn.Module:
    """A MeshNet of plain torch, whose parts have others' names: arc-meshchop's conv and bn, brainchop's 0 and 1."""
    convolution, norm = names
    layers, inputs = [], 1
    for d in dilations:
        parts = {convolution: nn.Conv3d(inputs, channels, 3, padding=d, dilation=d, bias=bias)}
        parts |= {norm: nn.BatchNorm3d(channels), "relu": nn.ReLU()}
        layers.append(nn.Sequential(OrderedDict(parts)))
        inputs = channels
    return nn.Sequential(*layers, nn.Conv3d(channels, classes, 1))


@pytest.mark.parametrize(
    ("prefix", "names", "bias", "wrapper"),
    [
        ("network.", ("conv", "bn"), True, "model_state_dict"),
        ("model.", ("0", "1"), True, None),
        ("module.model.", ("conv", "bnorm"), False, "state_dict"),
    ],
)
def test_it_answers_as_theirs(prefix: str, names: tuple, bias: bool, wrapper: str | None, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = theirs(4, names, [1, 2, 1], bias, classes=3)
    network(torch.rand(2, 1, 12, 12, 12))  # running statistics of its own
    network.eval()
    state = {prefix + key: value for key, value in network.state_dict().items()}
    torch.save({wrapper: state, "epoch": 50} if wrapper else state, tmp_path / "final.pt")
    import_weights(str(tmp_path / "final.pt"), str(tmp_path / "new.pt"), license="Apache-2.0", dilations=[1, 2, 1])
    x = torch.rand(1, 1, 9, 12, 10)
    with torch.no_grad():
        torch.testing.assert_close(Weights(str(tmp_path / "new.pt")).network().eval()(x), network(x))
    card = json.loads((tmp_path / "new.json").read_text())
    assert (card["license"], card["orientation"], card["spatial_size"]) == ("Apache-2.0", "RAS", [256, 256, 256])


@pytest.mark.parametrize(
    ("dilations", "change", "line"),
    [
        (None, {}, "final.pt: 3 dilated layers, --dilations names 9; give one for each layer"),
        (3, {}, "final.pt: 3 dilated layers, --dilations names 1"),
        ([1, 2], {}, "final.pt: 3 dilated layers, --dilations names 2"),
        (
            [1, 2, 1],
            {"network.3.weight": torch.zeros(2, 5, 1, 1, 1)},
            "final.pt: weights of another network, classifier",
        ),
        ([1, 2, 1], {"network.1.attention.weight": torch.zeros(1)}, "final.pt: not weights of this network"),
        ([1, 2, 1], {"network.0.conv.weight": torch.zeros(4, 1, 3, 3)}, "final.pt: no MeshNet"),
    ],
)
def test_what_is_no_such_meshnet_is_one_line(dilations: list | None, change: dict, line: str, tmp_path: Path) -> None:
    state = {f"network.{key}": value for key, value in theirs(4, ("conv", "bn"), [1, 2, 1]).state_dict().items()}
    torch.save(state | change, tmp_path / "final.pt")
    with pytest.raises(InputError, match=line):
        import_weights(str(tmp_path / "final.pt"), str(tmp_path / "new.pt"), dilations=dilations)
    assert [path.name for path in tmp_path.iterdir()] == ["final.pt"]


def test_an_orientation_that_no_scan_has_is_not_written(tmp_path: Path) -> None:
    state = {f"network.{key}": value for key, value in theirs(4, ("conv", "bn"), [1]).state_dict().items()}
    torch.save(state, tmp_path / "final.pt")
    with pytest.raises(InputError, match=r"final.pt: orientation 'RAR'"):
        import_weights(str(tmp_path / "final.pt"), str(tmp_path / "new.pt"), orientation="RAR", dilations=[1])
    assert [path.name for path in tmp_path.iterdir()] == ["final.pt"]


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path) -> None:
    torch.save(theirs(4, ("conv", "bn"), [1]), tmp_path / "final.pt")
    with pytest.raises(InputError, match=r"final.pt: contains more than weights, such as code; refused"):
        import_weights(str(tmp_path / "final.pt"), str(tmp_path / "new.pt"))


def test_the_old_command_says_the_new_one() -> None:
    command = [sys.executable, ROOT / "scripts" / "import_brainchop.py", "--model_json", "model.json"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "scripts/import_weights.py now, and --model_json is --path" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "arc_meshchop").is_dir(), reason="shared/real/arc_meshchop is not beside the bundle")
def test_a_network_trained_on_patients_gives_its_mask_of_a_patient(tmp_path: Path) -> None:
    """In a box at the lesion's edge, against plain torch; arc-meshchop publishes its weights by these names."""
    ours = torch.load(REAL / "arc_meshchop" / "restart_0.pt", weights_only=True)
    network = theirs(26, ("0", "1"), DILATIONS).eval()
    network.load_state_dict({k.removeprefix("layers.").replace("classifier", "9"): v for k, v in ours.items()})
    names = {"0": "conv", "1": "bn"}
    published = {}
    for key, value in ours.items():
        _, *parts = key.replace("classifier", "layers.9").split(".")
        published[".".join(["network", parts[0], *(names.get(p, p) for p in parts[1:])])] = value
    torch.save({"model_state_dict": published, "config": {"channels": 26}}, tmp_path / "final.pt")
    import_weights(str(tmp_path / "final.pt"), str(tmp_path / "new.pt"))
    scan = np.asarray(nib.load(REAL / "patients" / "M2265_T2w.nii.gz").dataobj, np.float32)
    scan = (scan - scan.min()) / (scan.max() - scan.min())
    x = torch.from_numpy(scan[88:216, 16:160, 48:176].copy())[None, None]
    with torch.no_grad():
        expected, got = network(x), Weights(str(tmp_path / "new.pt")).network().eval()(x)
    assert 5_000 < expected.argmax(1).sum() < 500_000
    assert (expected.argmax(1) == got.argmax(1)).float().mean() > 0.9999
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
