"""Scans on the fly: new in each epoch, and the same for any number of workers and after a resume."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import OVERLAYS, TRAIN, bundle
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededDataset, SeededSampler
from scripts.simulation.anatomy import box, resolution_for
from scripts.simulation.dataset import SimulateScand

GRID = (8.0, 8.0, 8.0), (32, 32, 32)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return Dataset([{}] * 4, Compose([SimulateScand(*GRID)]))


def epoch(dataset: Dataset, number: int, n_workers: int = 0, skip: int = 0) -> Iterator[np.ndarray]:
    sampler = SeededSampler(dataset, seed=7)
    sampler.set_epoch(number)
    sampler.skip = skip
    loader = DataLoader(SeededDataset(dataset), sampler=sampler, num_workers=n_workers)
    return [batch["image"].numpy() for batch in loader]


def test_each_epoch_has_new_scans_that_workers_and_a_resume_do_not_change(dataset: Dataset) -> None:
    first, second = epoch(dataset, 0), epoch(dataset, 1)
    assert len({image.tobytes() for image in first + second}) == 8
    np.testing.assert_array_equal(epoch(dataset, 0, n_workers=2), first)
    np.testing.assert_array_equal(epoch(dataset, 1, skip=3), second[3:])


def test_an_item_has_image_and_mask_on_the_grid(dataset: Dataset) -> None:
    item = dataset[0]
    assert item["image"].shape == item["label"].shape == (1, 32, 32, 32)
    assert item["image"].dtype == torch.float32
    assert item["label"].dtype == torch.uint8
    assert item["image"].pixdim.tolist() == [8, 8, 8]


def test_the_overlay_turns_scans_to_the_orientation_that_the_card_will_name() -> None:
    overlay = str(OVERLAYS / "simulated_patients.json")
    made = {}
    for orientation in ("RAS", "PIR"):
        parser = ConfigParser()
        parser.read_config([TRAIN, overlay])
        grid = "spacing=(8.0, 8.0, 8.0), spatial_size=(32, 48, 16)"
        cohort = f"$__import__('types').SimpleNamespace({grid})"
        parser.update(
            {"orientation": orientation, "cohort": cohort, "intensity": {"_target_": "Identityd", "keys": "image"}}
        )
        transforms = parser.get_parsed_content("train#preprocessing")
        transforms.set_random_state(5)
        made[orientation] = transforms({})["image"]
    assert made["RAS"].shape == (1, 32, 48, 16)
    assert made["PIR"].shape == (1, 48, 16, 32)
    assert torch.equal(made["PIR"].as_tensor(), made["RAS"].as_tensor().permute(0, 2, 3, 1).flip(1, 2))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="isotropic"):
        SimulateScand((1.0, 1.0, 2.0), (32, 32, 32))
    with pytest.raises(ValueError, match=r"ranges .'greyness'.: expected some of"):
        SimulateScand(*GRID, ranges={"greyness": (0, 1)})
    with pytest.raises(InputError, match=r"/nowhere/head.nii.gz: no such file"):
        SimulateScand(*GRID, anatomies=["/nowhere/head.nii.gz"])
    with pytest.raises(InputError, match=r"/nowhere: no NIfTI file"):
        SimulateScand(*GRID, lesions=["/nowhere"])


def test_anatomies_are_files_folders_or_patterns(head_maps: np.ndarray, tmp_path: Path) -> None:
    for name in ("one_T1w", "two_T1w", "two_T2w"):
        nib.save(nib.Nifti1Image(head_maps[2] + 0.5 * head_maps[1] + 0.1, box(4)[1]), tmp_path / f"{name}.nii.gz")
    counts = [["MNI152", str(tmp_path)], [str(tmp_path / "*_T1w.nii.gz")], [str(tmp_path / "two_T2w.nii.gz")]]
    loaded = [SimulateScand(*GRID, anatomies=names).heads for names in counts]
    assert [len(heads) for heads in loaded] == [4, 2, 1]
    for name in (tmp_path / "*dseg*", tmp_path / "none"):
        with pytest.raises(InputError, match=f"{name.name}: no ".replace("*", ".")):
            SimulateScand(*GRID, anatomies=[str(name)])


def test_a_head_takes_seven_bytes_or_less_a_voxel_of_a_grid_like_the_scans(dataset: Dataset) -> None:
    maps = dataset.transform.transforms[0].heads[0].maps
    assert maps.dtype == torch.uint8
    assert [resolution_for(voxel) for voxel in (1, 2, 3, 8)] == [1, 1.5, 2, 6]
    assert maps.numel() <= 7 * np.prod([mm / 6 for mm in (192, 240, 192)])


@pytest.mark.slow
def test_the_overlay_trains_on_new_scans(cohort_dir: Path, tmp_path: Path) -> None:
    overlay = str(OVERLAYS / "simulated_patients.json")
    options = {"--dataset_dir": cohort_dir, "--output_dir": tmp_path, "--channels": 4}
    options |= {"--epochs": 2, "--scans_per_epoch": 2, "--ranges": "{'no_lesion': 0.5}"}
    arguments = [part for pair in options.items() for part in pair]
    result = bundle("training", "--config_file", f"['{TRAIN}','{overlay}']", *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    history = (tmp_path / "history.csv").read_text().splitlines()
    assert len(history) == 3
    card = (tmp_path / "model.json").read_text()
    assert "ScaleIntensityRangePercentilesd" in card
    assert '"trained_on": []' in card
