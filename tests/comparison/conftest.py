"""A comparison of two tiny networks over two folds and restarts, done once for all tests of this room."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from scripts.comparison.plan import Plan
from scripts.protocol import protocol

NETWORKS = [
    {"name": "thin", "paper": "MeshNet-5", "overrides": {"channels": 1}},
    {"name": "wide", "overrides": {"channels": 2, "dropout": 0.2}},
]
SMALL = {
    "networks": NETWORKS,
    "only": "",
    "reference": "thin",
    "folds": [0, 1],
    "restarts": 2,
    "epochs": 1,
    "overrides": {"learning_rate": 0.02, "amp": False},
}


@pytest.fixture(scope="session")
def coarse_dir(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans of each fold of the small cohort, on a grid of 16x16x16 voxels of 16 mm."""
    folder = tmp_path_factory.mktemp("coarse")
    for path in cohort_dir.iterdir():
        if path.name != "datalist.json":
            (folder / path.name).symlink_to(path)
    datalist = json.loads((cohort_dir / "datalist.json").read_text())
    folds = [[scan for scan in datalist["training"] if scan["fold"] == fold] for fold in (0, 1, 2)]
    grid = {"spacing": [16] * 3, "spatial_size": [16] * 3, "training": [scan for fold in folds for scan in fold[:3]]}
    (folder / "datalist.json").write_text(json.dumps({**datalist, **grid}))
    return folder


@pytest.fixture(scope="session")
def compare(coarse_dir: Path) -> Callable[..., Path]:
    """Run the command in this process; return its folder."""

    def run(folder: Path, **flags: object) -> Path:
        torch.set_num_threads(1)
        protocol(**{"dataset_dir": str(coarse_dir), "output_dir": str(folder), **SMALL, **flags})
        return folder

    return run


@pytest.fixture(scope="session")
def compared(compare: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that was never stopped."""
    return compare(tmp_path_factory.mktemp("compared") / "protocol")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not drawn, which takes long; those of ``compared`` are."""
    monkeypatch.setattr("scripts.comparison.report.draw", lambda *tables: None)


@pytest.fixture(scope="session")
def plan_of(coarse_dir: Path) -> Callable[..., Plan]:
    """The plan that ``configs/protocol.json`` makes of flags."""

    def make(folder: Path, **flags: object) -> Plan:
        parser = ConfigParser()
        parser.read_config(str(ROOT / "configs" / "protocol.json"))
        for key, value in {"dataset_dir": str(coarse_dir), "output_dir": str(folder), **SMALL, **flags}.items():
            merge_kv(parser, key, deepcopy(value))  # as an overlay: +key adds
        return parser.get_parsed_content("plan")

    return make
