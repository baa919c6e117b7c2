"""The Model Zoo's unit test of the bundle: it lies in the Zoo's ``ci/unit_tests`` and runs from the Zoo's root."""

import json
import os
import shutil
import sys
import tempfile
import unittest

import nibabel as nib
import numpy as np
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

BUNDLE = os.path.abspath(os.path.join("models", "meshnet_stroke_lesion_segmentation"))
SIDES, AFFINE = (24, 24, 24), np.diag([8.0, 8.0, 8.0, 1.0])


class TestMeshNetStrokeLesionSegmentation(unittest.TestCase):
    """Trains, evaluates and segments with scans of a few voxels, by the bundle's own configs."""

    def setUp(self):
        sys.path.insert(0, BUNDLE)  # where the bundle's `scripts` lie
        set_determinism(seed=0)
        self.folder = tempfile.mkdtemp()
        random, scans = np.random.default_rng(0), []
        for number in range(6):
            name = os.path.join(self.folder, f"sub-{number}")
            brain = np.pad(random.uniform(0.3, 0.6, (16, 16, 16)), 4).astype(np.float32)
            lesion = np.zeros(SIDES, np.uint8)
            lesion[8:12, 8:12, 8:12] = 1
            nib.save(nib.Nifti1Image(brain + lesion, AFFINE), f"{name}_T2w.nii.gz")
            nib.save(nib.Nifti1Image(lesion, AFFINE), f"{name}_mask.nii.gz")
            scan = {
                "image": f"sub-{number}_T2w.nii.gz",
                "label": f"sub-{number}_mask.nii.gz",
                "subject": f"sub-{number}",
            }
            scan |= {"session": None, "acquisition": None, "lesion_volume": float(lesion.sum() * 8**3)}
            fold, inner = number % 2, number // 2 % 2
            scans.append({**scan, "fold": fold, "inner_folds": [None if fold == k else inner for k in range(2)]})
        about = {"name": "few voxels", "simulated": True, "spacing": [8, 8, 8], "spatial_size": list(SIDES)}
        with open(os.path.join(self.folder, "datalist.json"), "w") as file:
            json.dump({**about, "outer_folds": 2, "inner_folds": 2, "training": scans}, file)

    def tearDown(self):
        sys.path.remove(BUNDLE)
        shutil.rmtree(self.folder)

    def run_workflow(self, kind, *configs, **overrides):
        files = [os.path.join(BUNDLE, "configs", f"{name}.json") for name in configs]
        meta = os.path.join(BUNDLE, "configs", "metadata.json")
        workflow = ConfigWorkflow(files, meta_file=meta, logging_file=False, workflow_type=kind, **overrides)
        workflow.initialize()
        assert not workflow.check_properties()
        workflow.run()
        workflow.finalize()
        return workflow

    def test_trains_and_evaluates(self):
        places = {"dataset_dir": self.folder, "output_dir": os.path.join(self.folder, "eval"), "device": "cpu"}
        self.run_workflow("train", "train", epochs=1, channels=5, report=False, **places)
        assert os.path.isfile(os.path.join(self.folder, "eval", "model.pt"))
        self.run_workflow("train", "train", "evaluate", channels=5, report=False, run_id="evaluating", **places)
        assert os.path.isfile(os.path.join(self.folder, "eval", "metrics.csv"))

    def test_segments_with_the_released_weights(self):
        output = os.path.join(self.folder, "masks")
        self.run_workflow("infer", "inference", input=self.folder, output_dir=output, device="cpu")
        masks = [name for _, _, names in os.walk(output) for name in names if name.endswith("_mask.nii.gz")]
        assert len(masks) == 6


if __name__ == "__main__":
    unittest.main()
