"""A grid that is smaller than a scan holds the head, wherever it is; where MONAI's crop does, that is what is taken."""

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import INFERENCE
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import CropForeground, ResizeWithPadOrCrop

from scripts.data.placement import grid_starts, head_extent, voxels_on_grid


def volume(sides: tuple, head: tuple[slice, slice, slice]) -> torch.Tensor:
    image = torch.rand(1, *sides, generator=torch.Generator().manual_seed(0))
    image[(0, *head)] += 100
    return image


@pytest.mark.parametrize(
    ("side", "size", "extent", "orientation", "start"),
    [
        (100, 60, (25, 75), "R", 20),  # in the middle, as MONAI crops
        (100, 60, (20, 80), "R", 20),  # it just fits
        (101, 60, (22, 70), "R", 20),
        (100, 60, (40, 96), "R", 38),  # about its centre
        (100, 60, (50, 98), "R", 40),  # and no further than the scan
        (100, 60, (2, 30), "L", 0),
        (100, 60, (10, 100), "R", 25),  # it does not fit: about its centre
        (100, 60, (0, 90), "S", 36),  # a neck: from the top
        (100, 60, (10, 100), "I", 4),
        (100, 60, (0, 98), "S", 40),
        (100, 60, (0, 100), "S", 20),  # all of it is no head
        (40, 60, (10, 40), "S", -10),  # a scan that is smaller is padded
        (41, 60, (10, 40), "R", -9),
    ],
)
def test_the_grid_starts_where_it_holds_the_head(
    side: int, size: int, extent: tuple, orientation: str, start: int
) -> None:
    assert grid_starts([side], [size], [extent], orientation) == [start]


def test_the_head_is_found_to_within_a_block() -> None:
    image = volume((40, 130, 256), (slice(3, 30), slice(20, 101), slice(99, 256)))
    assert head_extent(image[0]) == [(3, 30), (20, 102), (96, 256)]
    image = volume((40, 131, 319), (slice(3, 30), slice(20, 131), slice(99, 319)))
    assert head_extent(image[0]) == [(3, 30), (20, 131), (96, 319)]


@pytest.mark.parametrize("sides", [(40, 48, 40), (41, 70, 33), (20, 60, 80), (48, 39, 40), (31, 48, 27)])
def test_where_the_head_is_in_the_middle_nothing_changes(sides: tuple) -> None:
    middle = tuple(slice(side // 2 - 8, side // 2 + 8) for side in sides)
    image = volume(sides, middle)
    chosen = voxels_on_grid(image, (32, 40, 32), "RAS")
    assert chosen.shape == (1, *sides)
    assert chosen.all()


@pytest.mark.parametrize("orientation", ["RAS", "LIA"])
def test_monai_crops_to_the_head_and_puts_it_back(orientation: str) -> None:
    head = (slice(5, 30), slice(60, 80), slice(40, 64))
    image = MetaTensor(volume((40, 80, 64), head))
    crop = CropForeground(lambda x: voxels_on_grid(x, (32, 40, 32), orientation))
    fit = ResizeWithPadOrCrop((32, 40, 32))
    cropped = fit(crop(image))
    assert cropped.shape == (1, 32, 40, 32)
    assert (cropped > 50).sum() == (image > 50).sum()
    back = crop.inverse(fit.inverse(cropped))
    assert torch.equal(back > 50, image > 50)


@pytest.mark.parametrize("below", [0, 120])
def test_inference_sees_a_head_that_air_has_moved_off_the_centre(below: int, tmp_path: Path) -> None:
    """Air that is added below it moves the centre of the scan, about which MONAI crops."""
    config = json.loads(Path(INFERENCE).read_text())
    head = 100.0 * (((np.indices((64, 64, 64)) - 31.5) ** 2).sum(0) < 27**2)
    head += np.random.default_rng(0).random(head.shape)
    padded = np.pad(head, ((0, 0), (0, 0), (0, below)))
    nib.save(nib.Nifti1Image(padded, np.diag([1, 1, -1, 1])), tmp_path / "scan.nii.gz")
    steps = [step for step in config["preprocessing"]["transforms"] if step != "$@weights.intensity"]
    grid = {"orientation": "RAS", "spacing": [1, 1, 1], "spatial_size": [64, 64, 64]}
    parser = ConfigParser({"preprocessing": {"_target_": "Compose", "transforms": steps}})
    parser["weights"] = SimpleNamespace(**grid)
    seen = parser.get_parsed_content("preprocessing")({"image": tmp_path / "scan.nii.gz"})["image"]
    assert (seen > 50).sum() == (head > 50).sum()
