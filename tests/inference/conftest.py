"""Weights whose answer is known beforehand, and the inference config run in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import INFERENCE, write
from monai.bundle import ConfigWorkflow

from scripts.networks.meshnet import MeshNet

AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network of one channel for which every voxel above half of the scan's range is lesion."""
    definition = {"channels": 1, "dilations": [1]}
    network, path = MeshNet(**definition), tmp_path_factory.mktemp("weights") / "model.pt"
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    state["layers.0.0.weight"][0, 0, 1, 1, 1] = 1
    state["layers.0.1.weight"][:], state["layers.0.1.running_var"][:] = 1, 1
    state["classifier.weight"][1], state["classifier.bias"][1] = 40, -20
    torch.save(state, path)
    card = {
        "network_def": {"_target_": "scripts.networks.meshnet.MeshNet", **definition},
        "intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}],
        "spacing": [3.0, 3.0, 3.0],
        "spatial_size": [24, 32, 24],
        "simulated": True,
    }
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="session")
def segment(weights: Path) -> Callable:
    """A function that runs ``configs/inference.json`` with these weights and the overrides it is given."""

    def run(input: Path, output_dir: Path, **overrides: object) -> ConfigWorkflow:
        overrides = {"ckpt_path": str(weights), "device": "cpu", "amp": False, "qc": False, **overrides}
        paths = {"input": str(input), "output_dir": str(output_dir)}
        workflow = ConfigWorkflow(INFERENCE, workflow_type="infer", logging_file=False, **paths, **overrides)
        workflow.initialize()
        workflow.run()
        return workflow

    return run


def phantom(bright: float = 100.0, part: tuple[slice, ...] = np.s_[14:18, 8:22, 6:14]) -> np.ndarray:
    """24x30x20 voxels: a head with a bright part, which is left of its middle in the grid of ``AFFINE``."""
    data = np.zeros((24, 30, 20), np.float32)
    data[2:22, 2:28, 2:18] = np.linspace(30, 31, 16)  # of more values than a mask has
    data[part] = bright
    return data


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A BIDS dataset of two scans."""
    root = tmp_path / "bids"
    for name in ("1", "2"):
        write(root / f"sub-{name}" / "anat" / f"sub-{name}_T2w.nii.gz", phantom(100 + int(name)), AFFINE)
    (root / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.9.0"}')
    return root
