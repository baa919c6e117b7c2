"""Outputs have BIDS names beside their scans' folders; a mask counts as done only if all that made it is the same."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import write

from scripts.inference.derivatives import Derivatives, MaskLayout


@pytest.mark.parametrize(
    ("scan", "mask"),
    [
        ("sub-1/ses-2/anat/sub-1_ses-2_acq-spc3_T2w.nii.gz", "sub-1_ses-2_acq-spc3_desc-lesion_mask.nii.gz"),
        ("t2.nii", "t2_desc-lesion_mask.nii.gz"),
        ("a.b/scan 1.nii.gz", "scan 1_desc-lesion_mask.nii.gz"),
    ],
)
def test_names_follow_bids(tmp_path: Path, scan: str, mask: str) -> None:
    path = MaskLayout(str(tmp_path / "in"), str(tmp_path / "out")).filename(str(tmp_path / "in" / scan))
    assert path == tmp_path / "out" / Path(scan).parent / mask
    assert path.parent.is_dir()


@pytest.fixture
def done(tmp_path: Path) -> dict:
    """A scan whose mask and sidecar are there."""
    scan, weights = write(tmp_path / "in" / "sub-1_T2w.nii.gz"), tmp_path / "model.pt"
    weights.write_bytes(b"weights")
    layout = MaskLayout(str(tmp_path / "in"), str(tmp_path / "out"))
    derivatives = Derivatives(layout, str(weights), {}, {"threshold": 0.5})
    write(tmp_path / "out" / "sub-1_desc-lesion_mask.nii.gz")
    stat = scan.stat()
    source = {"Path": str(scan), "Bytes": stat.st_size, "ModifiedNs": stat.st_mtime_ns}
    sidecar = tmp_path / "out" / "sub-1_desc-lesion_mask.json"
    sidecar.write_text(json.dumps({"Source": source, "GeneratedBy": [derivatives.made_by]}))
    scans = [{"image": str(scan)}]
    assert derivatives.to_do(scans) == []
    return {"layout": layout, "weights": weights, "scans": scans, "sidecar": sidecar, "scan": scan}


def to_do(done: dict, settings: dict | None = None) -> list[dict]:
    settings = settings or {"threshold": 0.5}
    return Derivatives(done["layout"], str(done["weights"]), {}, settings).to_do(done["scans"])


def test_other_settings_weights_or_a_changed_scan_are_done_again(done: dict) -> None:
    assert to_do(done) == []
    assert to_do(done, {"threshold": 0.4}) == done["scans"]
    done["weights"].write_bytes(b"others")
    assert to_do(done) == done["scans"]
    done["weights"].write_bytes(b"weights")
    write(done["scan"], affine=np.diag([3.0, 2.0, 2.0, 1.0]))
    assert to_do(done) == done["scans"]


@pytest.mark.parametrize("content", ["", "{}", "[", '{"GeneratedBy": []}'])
def test_a_broken_sidecar_is_not_done(done: dict, content: str) -> None:
    done["sidecar"].write_text(content)
    assert to_do(done) == done["scans"]


def test_a_mask_that_is_gone_is_not_done(done: dict) -> None:
    done["sidecar"].with_suffix(".nii.gz").unlink()
    assert to_do(done) == done["scans"]
