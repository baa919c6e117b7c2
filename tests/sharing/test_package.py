"""The packaged folder is what the Model Zoo takes, and what monai.bundle loads somewhere else."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import monai
import pytest
from conftest import ROOT, command

from scripts.common.errors import InputError
from scripts.sharing import package as packaging
from scripts.sharing.package import NAME, package


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command leaves, run from elsewhere, and again over the first."""
    folder = tmp_path_factory.mktemp("zoo")
    for _ in range(2):
        command(folder, "package", "--output_dir", "models")
    return folder / "models"


def test_it_holds_the_bundle_without_links_tests_or_debris(packaged: Path) -> None:
    assert sorted(path.name for path in packaged.iterdir()) == [NAME, f"{NAME}.zip", f"test_{NAME}.py"]
    folder = packaged / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "configs", "docs", "models", "scripts"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not [path for path in folder.rglob("*") if path.name in ("__pycache__", "run.json", ".lock")]
    assert json.loads((folder / "configs" / "metadata.json").read_text()) == json.loads(
        (ROOT / "metadata.json").read_text()
    )
    assert (folder / "docs" / "README.md").is_file()
    assert not [path for path in folder.rglob("*") if "benchmark" in path.name and path.parent.name != "docs"]
    for width in ("model", "model_26", "model_5"):
        assert (folder / "models" / f"{width}.pt").is_file()
        assert (folder / "models" / f"{width}.json").is_file()


def test_the_zip_holds_the_same(packaged: Path) -> None:
    with zipfile.ZipFile(packaged / f"{NAME}.zip") as archive:
        zipped = {name for name in archive.namelist() if not name.endswith("/")}
    assert zipped == {str(p.relative_to(packaged)) for p in (packaged / NAME).rglob("*") if p.is_file()}


def test_its_training_config_differs_in_the_width_of_the_weights_alone(packaged: Path) -> None:
    ours, theirs = (json.loads((root / "configs" / "train.json").read_text()) for root in (ROOT, packaged / NAME))
    assert theirs.pop("channels") == json.loads((ROOT / "models" / "model.json").read_text())["channels"]
    assert ours.pop("channels") == 16
    assert ours == theirs


PROGRAM = """
import monai, scripts, sys, torch
from pathlib import Path

name, folder = {name!r}, {folder!r}
assert Path(scripts.__file__).parents[1] == Path(folder, name)
weights = torch.load(f"{{folder}}/{{name}}/models/model.pt", weights_only=True)
for kind in ("train", "inference"):
    network = monai.bundle.load(name=name, bundle_dir=folder, workflow_type=kind)
    state = network.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in weights)
    print(kind, tuple(network(torch.rand(1, 1, 16, 20, 24)).shape))
given = {{"net_id": "network_def", "config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}}
monai.bundle.verify_net_in_out(**given)
given["ckpt_file"] = "models/model.pt"
monai.bundle.ckpt_export(**given, filepath="../m.ts")
monai.bundle.onnx_export(**given, filepath="../m.onnx", input_shape=[1, 1, 16, 16, 16])
"""


@pytest.mark.slow
def test_monai_loads_verifies_and_exports_the_unpacked_zip(packaged: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(packaged / f"{NAME}.zip") as archive:
        archive.extractall(tmp_path)
    program = PROGRAM.format(name=NAME, folder=str(tmp_path))
    environment = {"PYTHONPATH": str(tmp_path / NAME), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path / NAME, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    for kind in ("train", "inference"):
        assert f"{kind} (1, 2, 16, 20, 24)" in result.stdout
    assert (tmp_path / "m.ts").is_file()
    assert (tmp_path / "m.onnx").is_file()


def test_no_page_links_to_what_is_left_out(packaged: Path) -> None:
    for page in (packaged / NAME).rglob("*.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name


def test_weights_on_a_web_host_are_listed_and_monai_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(ROOT / "models"))
    with ThreadingHTTPServer(("localhost", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        package(str(tmp_path), weights_url=f"http://localhost:{server.server_port}/")
        assert not [*(tmp_path / NAME).rglob("*.pt")]
        monai.bundle.download_large_files(str(tmp_path / NAME))
        server.shutdown()
    for name in ("model.pt", "model_26.pt", "model_5.pt"):
        assert (tmp_path / NAME / "models" / name).read_bytes() == (ROOT / "models" / name).read_bytes()


@pytest.mark.slow
def test_the_unit_test_passes_in_a_folder_laid_out_as_the_zoo(packaged: Path, tmp_path: Path) -> None:
    shutil.copytree(packaged, tmp_path / "models")
    command = [sys.executable, "-m", "unittest", f"models/test_{NAME}.py"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2", "HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Ran 2 tests" in result.stderr


def test_the_width_is_that_of_the_card_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaging, "read_card", lambda path: {"network_def": {"channels": 7}})
    package(str(tmp_path))
    assert json.loads((tmp_path / NAME / "configs" / "train.json").read_text())["channels"] == 7


@pytest.mark.parametrize("entry", [".git", "eval", "mine.txt"])
def test_a_folder_with_other_things_in_it_is_not_replaced(tmp_path: Path, entry: str) -> None:
    (tmp_path / NAME / "configs").mkdir(parents=True)
    (tmp_path / NAME / entry).mkdir()
    with pytest.raises(InputError, match=rf"{NAME}: holds {entry}, which no package does"):
        package(str(tmp_path))
    assert (tmp_path / NAME / entry).is_dir()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, so no folder")
    with pytest.raises(InputError, match=r"file/zoo: cannot be written \(Not a directory\); give another"):
        package(str(tmp_path / "file" / "zoo"))


def test_without_git_the_same_is_packaged_but_for_caches(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = packaged / NAME
    (unpacked / "scripts" / "__pycache__").mkdir()
    (unpacked / "scripts" / "__pycache__" / "package.pyc").touch()
    monkeypatch.setattr(packaging, "BUNDLE", unpacked)
    package(str(tmp_path))
    with zipfile.ZipFile(packaged / f"{NAME}.zip") as first, zipfile.ZipFile(tmp_path / f"{NAME}.zip") as second:
        assert {n for n in first.namelist() if n[-1] != "/"} == {n for n in second.namelist() if n[-1] != "/"}
