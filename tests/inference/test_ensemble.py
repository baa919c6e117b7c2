"""Several weights segment a scan together; all of them are named by what they made."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.common.errors import describe


@pytest.fixture
def member(weights: Path, tmp_path: Path) -> Callable:
    """A function that writes other weights: ``bias`` shifts their network's answer, ``changes`` are of their card."""

    def write(name: str, bias: float = 0.0, **changes: object) -> Path:
        state = torch.load(weights)
        state["classifier.bias"][1] += bias
        path = tmp_path / "members" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)
        card = {**json.loads(weights.with_suffix(".json").read_text()), **changes}
        path.with_suffix(".json").write_text(json.dumps(card))
        return path

    return write


def volumes(folder: Path) -> dict[str, np.ndarray]:
    """By ``desc-`` and what follows."""
    return {p.name.split("desc-")[1]: nib.load(p).get_fdata() for p in folder.rglob("sub-1_*.nii.gz")}


def test_an_ensemble_gives_the_mean_probability_how_far_members_are_apart_and_their_agreement(
    segment: Callable, scans: Path, member: Callable, tmp_path: Path
) -> None:
    """Against the members, each run by itself: resampling is linear, and one finds more than the other everywhere."""
    paths, scan = [member("a.pt"), member("b.pt", bias=-6)], scans / "sub-1" / "anat" / "sub-1_T2w.nii.gz"
    alone = []
    for path in paths:
        segment(scan, tmp_path / path.stem, ckpt_path=str(path), save_probability=True)
        alone.append(volumes(tmp_path / path.stem))
        assert set(alone[-1]) == {"lesion_mask.nii.gz", "lesion_probseg.nii.gz"}
    segment(scan, tmp_path / "both", ckpt_path=f"{paths[0]}, {paths[1]}", save_probability=True)
    (one, other), both = [volume["lesion_probseg.nii.gz"] for volume in alone], volumes(tmp_path / "both")
    np.testing.assert_allclose(both["lesion_probseg.nii.gz"], (one + other) / 2, atol=1e-5)
    np.testing.assert_allclose(both["uncertainty_probseg.nii.gz"], (one - other) / 2, atol=1e-5)
    assert both["uncertainty_probseg.nii.gz"].max() > 0.05
    sidecar = json.loads((tmp_path / "both" / "sub-1" / "anat" / "sub-1_desc-lesion_mask.json").read_text())
    (row,) = csv.DictReader((tmp_path / "both" / "lesions.tsv").open(), delimiter="\t")
    assert 0.5 < float(row["quality"]) < 1
    assert sidecar["Lesions"]["quality"] == pytest.approx(float(row["quality"]), abs=1e-6)
    (made_by,) = sidecar["GeneratedBy"]
    assert made_by["Weights"] == ["a.pt", "b.pt"]
    assert made_by["WeightsSHA256"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_each_member_adapts_to_a_scan_by_its_own_card(
    segment: Callable, weights: Path, scans: Path, member: Callable, tmp_path: Path
) -> None:
    network = json.loads(weights.with_suffix(".json").read_text())["network_def"]
    limited = {**network, "norm_adaptation": 0.4, "norm_shift_limit": 0.0}
    paths, scan = [member("a.pt"), member("b.pt", network_def=limited)], scans / "sub-1" / "anat" / "sub-1_T2w.nii.gz"
    alone = []
    for path in paths:
        segment(scan, tmp_path / path.stem, ckpt_path=str(path), save_probability=True)
        alone.append(volumes(tmp_path / path.stem)["lesion_probseg.nii.gz"])
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    segment(scan, tmp_path / "both", ckpt_path=f"{paths[0]},{paths[1]}", save_probability=True)
    both = volumes(tmp_path / "both")["lesion_probseg.nii.gz"]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=1e-5)
    sidecar = json.loads((tmp_path / "both" / "sub-1" / "anat" / "sub-1_desc-lesion_mask.json").read_text())
    assert sidecar["Lesions"]["norm_adaptation"] == 0.4
    settings = sidecar["GeneratedBy"][0]["Settings"]
    assert (settings["norm_adaptation"], settings["norm_shift_limit"]) == ([0, 0.4], [None, 0.0])


def test_a_folder_of_one_is_that_member_and_its_flips_agree_or_not(
    segment: Callable, scans: Path, member: Callable, tmp_path: Path
) -> None:
    """The network looks at one voxel at a time, so it says the same of the mirror image."""
    folder = member("fold0/model.pt").parents[1]
    (folder / "fold0" / "checkpoint_last.pt").write_bytes(b"a state, no member")
    out = tmp_path / "out"
    segment(scans, out, ckpt_path=str(folder), flip_averaging=True, save_uncertainty="true")
    assert set(volumes(out)) == {"lesion_mask.nii.gz", "uncertainty_probseg.nii.gz"}
    assert volumes(out)["uncertainty_probseg.nii.gz"].max() < 1e-6
    assert [row["quality"] for row in csv.DictReader((out / "lesions.tsv").open(), delimiter="\t")] == ["1.0", "1.0"]
    assert json.loads((out / "dataset_description.json").read_text())["GeneratedBy"][0]["Weights"] == "model.pt"
    segment(scans, out, ckpt_path=str(folder))
    assert [row["quality"] for row in csv.DictReader((out / "lesions.tsv").open(), delimiter="\t")] == ["n/a", "n/a"]


@pytest.mark.parametrize("where", ["its weights", "its card"])
def test_a_member_that_does_not_fit_is_named(
    segment: Callable, scans: Path, member: Callable, tmp_path: Path, where: str
) -> None:
    paths = [member("a.pt"), member("b.pt")]
    if where == "its weights":
        torch.save({"layers.0.0.weight": torch.zeros(1)}, paths[1])
    else:
        paths[1].with_suffix(".json").unlink()
    with pytest.raises(RuntimeError) as error:
        segment(scans, tmp_path / "out", ckpt_path=",".join(map(str, paths)))
    (line,) = describe(error.value).splitlines()
    assert line.startswith(str(paths[1].with_suffix(".pt" if where == "its weights" else ".json")))


def test_save_uncertainty_is_true_or_false(segment: Callable, scans: Path, member: Callable, tmp_path: Path) -> None:
    members = f"{member('a.pt')},{member('b.pt')}"
    with pytest.raises(RuntimeError) as error:
        segment(scans, tmp_path / "out", ckpt_path=members, save_uncertainty="maybe")
    assert describe(error.value) == "save_uncertainty 'maybe': expected true or false"
    with pytest.raises(RuntimeError) as error:
        segment(scans, tmp_path / "out", ckpt_path=members.split(",")[0], save_uncertainty="true")
    assert describe(error.value).startswith("save_uncertainty: there is one prediction; give several weights or")
    segment(scans, tmp_path / "out", ckpt_path=members, save_uncertainty="false")
    assert set(volumes(tmp_path / "out")) == {"lesion_mask.nii.gz"}
