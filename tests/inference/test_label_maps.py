"""labels.json: networks of more than two classes give a map of labels, not a mask."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import INFERENCE, OVERLAYS, write
from monai.bundle import ConfigWorkflow

from scripts.common.errors import describe
from scripts.networks.meshnet import MeshNet

LABELS = str(OVERLAYS / "labels.json")
AFFINE = np.diag([-3.0, 3.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three classes: below a quarter of the scan's range, above three quarters, and between them."""
    definition = {"channels": 1, "dilations": [1], "out_channels": 3, "norm": None}
    network, path = MeshNet(**definition), tmp_path_factory.mktemp("weights") / "three.pt"
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    state["layers.0.0.weight"][0, 0, 1, 1, 1] = 1
    state["classifier.weight"][:, 0, 0, 0, 0] = torch.tensor([0.0, 4.0, 8.0])
    state["classifier.bias"][:] = torch.tensor([0.0, -1.0, -4.0])
    torch.save(state, path)
    card = {"network_def": {"_target_": "scripts.networks.meshnet.MeshNet", **definition}, "orientation": "LIA"}
    card |= {"intensity": [{"_target_": "ScaleIntensityd", "keys": "image"}], "spacing": [3.0] * 3}
    path.with_suffix(".json").write_text(json.dumps({**card, "spatial_size": [32, 32, 40]}))
    return path


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Callable:
    """A function that runs the configs on two scans of three intensities."""
    image = np.zeros((24, 30, 20), np.float32)
    image[2:22, 2:28, 2:18], image[14:18, 8:22, 6:14] = np.linspace(49, 51, 16), 100
    for name in ("sub-1", "sub-2"):
        write(tmp_path / "in" / name / f"{name}_T2w.nii.gz", image, AFFINE)

    def run(*configs: str, **overrides: object) -> np.ndarray:
        paths = {"input": str(tmp_path / "in"), "output_dir": str(tmp_path / "out"), "ckpt_path": str(weights)}
        settings = {"device": "cpu", "amp": False, **overrides}
        workflow = ConfigWorkflow(list(configs), workflow_type="infer", logging_file=False, **paths | settings)
        workflow.initialize()
        workflow.run()
        return np.round(image / 50)

    return run


def test_each_voxel_of_a_scan_has_its_label_in_the_scans_own_grid(run: Callable, tmp_path: Path) -> None:
    expected = run(INFERENCE, LABELS)
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    made = [f"sub-{i}/sub-{i}_dseg.{end}" for i in (1, 2) for end in ("json", "nii.gz")]
    assert files == [".bidsignore", "dataset_description.json", *made]
    labels = nib.load(tmp_path / "out" / made[1])
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected)
    np.testing.assert_allclose(labels.affine, AFFINE)
    assert labels.get_data_dtype() == np.uint8


def test_a_broken_scan_is_a_line_at_the_end_and_the_others_have_their_labels(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub-0").mkdir()
    (tmp_path / "in" / "sub-0" / "sub-0_T2w.nii.gz").write_bytes(b"broken")
    with pytest.raises(RuntimeError) as error:
        run(INFERENCE, LABELS)
    assert "sub-0_T2w.nii.gz: " in describe(error.value)
    assert len([*(tmp_path / "out").rglob("*_dseg.nii.gz")]) == 2


def test_a_second_run_makes_what_is_missing_and_shards_share_the_folder(run: Callable, tmp_path: Path) -> None:
    run(INFERENCE, LABELS, shard="1/2")
    (first,) = (tmp_path / "out").rglob("*_dseg.nii.gz")
    written = first.stat().st_mtime_ns
    run(INFERENCE, LABELS)
    assert [p.name for p in sorted((tmp_path / "out").rglob("*_dseg.nii.gz"))] == [
        f"sub-{i}_dseg.nii.gz" for i in (1, 2)
    ]
    assert first.stat().st_mtime_ns == written
    sidecar = json.loads(first.with_name("sub-1_dseg.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-1/sub-1_T2w.nii.gz"]
    assert sidecar["GeneratedBy"][0]["Weights"] == "three.pt"


def test_a_map_that_another_made_is_left_alone(run: Callable, tmp_path: Path) -> None:
    path = tmp_path / "out" / "sub-1" / "sub-1_dseg.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(RuntimeError) as error:
        run(INFERENCE, LABELS)
    assert f"{path}: not made by this bundle, so not replaced" in describe(error.value)
    assert path.read_bytes() == b"mine"


def test_several_weights_are_refused(run: Callable, weights: Path, tmp_path: Path) -> None:
    for suffix in (".pt", ".json"):
        shutil.copy(weights.with_suffix(suffix), tmp_path / f"other{suffix}")
    with pytest.raises(RuntimeError) as error:
        run(INFERENCE, LABELS, ckpt_path=f"{weights},{tmp_path / 'other.pt'}")
    assert describe(error.value) == f"ckpt_path {weights},{tmp_path / 'other.pt'}: 2 files of weights; give one"


def test_without_the_overlay_such_weights_are_one_line(run: Callable, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as error:
        run(INFERENCE)
    assert describe(error.value).startswith("these weights have 3 classes, so no mask of lesion; for a map of labels")
    assert not (tmp_path / "out").exists()
