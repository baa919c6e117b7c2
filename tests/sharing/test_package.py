"""The packaged folder is what the Model Zoo takes, and what monai.bundle loads somewhere else."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from scripts.common.errors import InputError
from scripts.sharing import package as packaging
from scripts.sharing.package import NAME, package


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command leaves, run from there."""
    folder = tmp_path_factory.mktemp("zoo")
    command = [sys.executable, str(ROOT / "scripts" / "package.py"), "--output_dir", "models"]
    for _ in range(2):  # again over the first
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    return folder / "models"


def test_it_holds_the_bundle_without_links_tests_or_debris(packaged: Path) -> None:
    assert sorted(path.name for path in packaged.iterdir()) == [NAME, f"{NAME}.zip"]
    folder = packaged / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "configs", "docs", "models", "scripts"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not [path for path in folder.rglob("*") if path.name in ("__pycache__", "run.json", ".lock")]
    assert json.loads((folder / "configs" / "metadata.json").read_text()) == json.loads(
        (ROOT / "metadata.json").read_text()
    )
    assert (folder / "docs" / "README.md").is_file()
    for width in ("model", "model_16", "model_5"):
        assert (folder / "models" / f"{width}.pt").is_file()
        assert (folder / "models" / f"{width}.json").is_file()


def test_the_zip_holds_the_same(packaged: Path) -> None:
    with zipfile.ZipFile(packaged / f"{NAME}.zip") as archive:
        zipped = {name for name in archive.namelist() if not name.endswith("/")}
    assert zipped == {str(p.relative_to(packaged)) for p in (packaged / NAME).rglob("*") if p.is_file()}


def test_its_training_config_differs_in_the_width_of_the_weights_alone(packaged: Path) -> None:
    ours, theirs = (json.loads((root / "configs" / "train.json").read_text()) for root in (ROOT, packaged / NAME))
    assert theirs.pop("channels") == json.loads((ROOT / "models" / "model.json").read_text())["channels"] == 26
    assert ours.pop("channels") == 16
    assert ours == theirs


LOAD = """
import monai, torch
network = monai.bundle.load(name="{name}", bundle_dir="{folder}", workflow_type="{kind}")
weights = torch.load("{folder}/{name}/models/model.pt", weights_only=True)
state = network.state_dict()
assert state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in weights)
print(network(torch.rand(1, 1, 16, 20, 24)).shape)
"""


@pytest.mark.slow  # each loads MONAI in a process of its own
@pytest.mark.parametrize("kind", ["train", "inference"])
def test_monai_loads_the_weights_of_the_unpacked_zip(packaged: Path, tmp_path: Path, kind: str) -> None:
    with zipfile.ZipFile(packaged / f"{NAME}.zip") as archive:
        archive.extractall(tmp_path)
    program = LOAD.format(name=NAME, folder=tmp_path, kind=kind)
    environment = {"PYTHONPATH": str(tmp_path / NAME), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "torch.Size([1, 2, 16, 20, 24])" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("verify_net_in_out --net_id network_def", None),
        ("ckpt_export --net_id network_def --filepath m.ts --ckpt_file models/model.pt", "m.ts"),
        ("onnx_export --net_id network_def --filepath m.onnx --ckpt_file models/model.pt --input_shape [1,1,16,16,16]",
         "m.onnx"),
    ],
)  # fmt: skip
def test_monais_commands_work_on_it(packaged: Path, command: str, file: str | None) -> None:
    name, *arguments = command.split()
    configs = ["--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json"]
    program = [sys.executable, "-m", "monai.bundle", name, *arguments, *configs]
    result = subprocess.run(program, cwd=packaged / NAME, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    if file:
        (packaged / NAME / file).unlink()


def test_large_files_become_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "LARGE", 500_000)  # the weights of 26 channels take 600 kB
    with pytest.raises(InputError, match=r"^models/model.pt: larger than .* say with --url where they will lie$"):
        package(str(tmp_path / "a"))
    assert list((tmp_path / "a").iterdir()) == []
    package(str(tmp_path / "b"), url="https://example.org/weights/")
    folder = tmp_path / "b" / NAME
    assert not (folder / "models" / "model.pt").exists()
    text = (folder / "large_files.yml").read_text()
    assert 'path: "models/model.pt"' in text
    assert 'url: "https://example.org/weights/model.pt"' in text
