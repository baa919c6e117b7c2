"""The way from corrected masks to a page with the weights that learned from them."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser.conftest import infer
from browser.test_site import segment
from conftest import OVERLAYS, ROOT, TRAIN, bundle

from scripts.browser.serve import server_of
from scripts.data.datalist import prepare_datalist


@pytest.mark.slow
def test_a_page_of_weights_that_learned_from_corrected_masks_segments_with_them(
    start: Callable, site: Path, weights: Path, scans: Path, inferred: Path, tmp_path: Path
) -> None:
    data = tmp_path / "mine"
    (data / "corrected").mkdir(parents=True)
    head = nib.load(scans / "sagittal.nii.gz")
    for i in range(1, 8):  # in the names that the page saves
        noisy = np.asarray(head.dataobj) + np.random.default_rng(i).integers(0, 9, head.shape)  # no scan comes twice
        nib.save(nib.Nifti1Image(noisy.astype(np.uint16), head.affine), data / f"sub-{i}_T2w.nii.gz")
        shutil.copy(
            inferred / "sagittal_desc-lesion_mask.nii.gz", data / "corrected" / f"sub-{i}_desc-lesion_mask.nii.gz"
        )
    prepare_datalist(str(data), labels="corrected")
    configs, run = f"['{TRAIN}','{OVERLAYS / 'finetune.json'}']", tmp_path / "run"
    folders = ["--dataset_dir", data, "--init_weights", weights, "--output_dir", run]
    options = ["--inner_fold", "none", "--epochs", 1, "--learning_rate", 1e-4]
    trained = bundle("training", "--config_file", configs, *folders, *options)
    assert trained.returncode == 0, trained.stderr[-2000:]
    command = [sys.executable, str(ROOT / "scripts" / "browser_app.py"), "--ckpt_path", str(run / "model.pt")]
    built = subprocess.run([*command, "--output_dir", str(tmp_path / "site")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    scan = scans / "plain_T2w.nii.gz"
    infer(run / "model.pt", scan, tmp_path / "inferred")
    name = "plain_desc-lesion_mask.nii.gz"
    with server_of(str(tmp_path / "site"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = start()
        page.open(f"http://localhost:{server.server_port}/")
        page.wait_for("document.body?.dataset.offline")
        assert "Model: model," in page.text("#about")
        segment(page, scan)
        masks = [nib.load(path) for path in (page.download("#save", name), tmp_path / "inferred" / name)]
        server.shutdown()
    ours, theirs, before = (np.asarray(mask.dataobj) > 0 for mask in [*masks, nib.load(inferred / name)])
    assert theirs.sum() > 100
    assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) >= 0.999
    assert (theirs != before).any()  # so the weights are others
    assert json.loads((tmp_path / "site" / "card.json").read_text())["name"] == "model"
