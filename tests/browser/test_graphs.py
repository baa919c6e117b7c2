"""The graphs are MONAI's transforms there and back, and find the head and its middle as the commands do."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Invertd,
    Orientationd,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentiles,
    Spacingd,
)
from scipy.spatial.transform import Rotation
from torch.nn.functional import avg_pool3d

from scripts.browser.graphs import Agree, Coarse, Midline, Prepare, percentile
from scripts.common.errors import InputError
from scripts.data.placement import grid_starts, head_of
from scripts.inference.lesions import midline

CARD = {
    "orientation": "RAS",
    "spacing": [3.0, 3.5, 2.5],
    "spatial_size": [14, 12, 15],
    "intensity": [{"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0}],
    "network_def": {},
    "flip_averaging": False,
}


def affines() -> list[tuple[np.ndarray, list[int]]]:
    """Affines with the scans' sides: turned and mirrored any way, sheared, at the network's own spacing."""
    rng, cases = np.random.default_rng(0), []
    for i in range(60):
        turn = Rotation.random(random_state=i).as_matrix()
        if i % 3 == 0:  # along the axes
            turn = np.eye(3)[rng.permutation(3)]
        linear = turn @ np.diag(rng.uniform(0.8, 5, 3) * rng.choice([-1, 1], 3))
        if i % 7 == 0:
            linear[0, 1] += rng.uniform(-0.4, 0.4)
        affine = nib.affines.from_matvec(linear, rng.uniform(-90, 90, 3)).astype(np.float32).astype(float)
        cases.append((affine, rng.integers(5, 20, 3).tolist()))
    return [*cases, (np.diag([3.0, 3.5, 2.5, 1.0]), [10, 12, 14]), (np.diag([3.0004, 3.5, 2.5, 1.0]), [20, 12, 9])]


@pytest.mark.slow
def test_geometry_and_graphs_agree_with_monai_there_and_back(graphs: Callable) -> None:
    card = {**CARD, "orientation": "LIA"}  # scans in RAS are segmented in test_site.py
    rng = np.random.default_rng(2)
    ends = np.array([0, 1])
    heads = [np.sort(rng.integers(0, np.array(sides)[:, None], (3, 2)), 1) + ends for _, sides in affines()]
    place, prepare, agree, restore = graphs(card)
    rng, moved = np.random.default_rng(1), []
    for (affine, sides), extent in zip(affines(), heads, strict=True):
        on_grid = partial(about_head, extent=extent, affine=affine, sides=sides, card=card, moved=moved)
        transform = Compose(
            [
                Orientationd("image", axcodes=card["orientation"], labels=None),
                Spacingd("image", pixdim=card["spacing"], mode="bilinear"),
                CropForegroundd("image", "image", on_grid, start_coord_key=None, end_coord_key=None),
                ResizeWithPadOrCropd("image", spatial_size=card["spatial_size"]),
            ]
        )
        head = np.zeros(sides, bool)
        head[tuple(slice(*ends) for ends in extent)] = True
        to_scan, back, limits = place(affine=affine[:3], sides=np.array(sides, float), head=head.T)
        scan = rng.random(sides, np.float32)
        item = transform({"image": MetaTensor(torch.tensor(scan[None] - scan.min()), affine=torch.tensor(affine))})
        (image,) = prepare(scan=scan.T[None, None], to_scan=to_scan, limits=limits)
        expected = item["image"][0].numpy()
        np.testing.assert_allclose(image[0, 0], (expected - expected.min()) / np.ptp(expected), atol=2e-4)
        lesion = torch.rand(1, *card["spatial_size"])
        logits = torch.cat([torch.zeros_like(lesion), lesion.logit()])[None].numpy()
        axes = {name: np.arange(n, dtype=np.float32) for name, n in zip("xyz", sides, strict=True)}
        (probability,) = agree(logits=logits, limits=limits)
        (got,) = restore(probability=probability, back=back, **axes)
        inverse = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=False)
        truth = inverse({**item, "pred": MetaTensor(lesion, affine=item["image"].affine)})["pred"]
        np.testing.assert_allclose(got[0, 0].T, truth[0].numpy(), atol=2e-4)
    assert sum(moved) > 20


def about_head(
    image: MetaTensor, extent: np.ndarray, affine: np.ndarray, sides: list, card: dict, moved: list
) -> torch.Tensor:
    """As ``voxels_on_grid``, but it is told the head's extent along the axes of the scan."""
    shape, size, ends, chosen = image.shape[1:], card["spatial_size"], np.zeros((3, 2)), torch.ones_like(image)
    to = nib.orientations.axcodes2ornt(card["orientation"])
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), to).astype(int)
    for (axis, sign), (first, last), side in zip(turn, extent, sides, strict=True):
        ends[axis] = np.array([first, last] if sign > 0 else [side - last, side - first]) * shape[axis] / side
    for axis, start in enumerate(np.floor(grid_starts(shape, size, ends, card["orientation"])).astype(int)):
        if (more := shape[axis] - size[axis]) > 0:
            moved.append(start != shape[axis] // 2 - size[axis] // 2)
            chosen.narrow(axis + 1, 0, start).fill_(0)
            chosen.narrow(axis + 1, start + size[axis], more - start).fill_(0)
    return chosen > 0


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A function: the graphs around the network, run by ONNX Runtime."""

    def written(card: dict) -> list[Callable]:
        from scripts.browser import graphs as module

        def no_network(ckpt_path: str, folder: str, formats: str, norm_adaptation: float | None) -> None:
            (Path(folder) / f"{Path(ckpt_path).stem}.onnx").write_bytes(b"")

        monkeypatch.setattr(module, "export", no_network)
        settings = {"norm_adaptation": 0, "norm_shift_limit": None}
        module.write_graphs(SimpleNamespace(members={"weights.pt": card}, card=card, settings=settings), tmp_path)

        def runner(name: str) -> Callable:
            session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
            return lambda **inputs: session.run(None, {k: np.ascontiguousarray(v) for k, v in inputs.items()})

        return [runner(name) for name in ("place", "prepare", "agree", "restore")]

    return written


@pytest.mark.parametrize("sides", [(12, 14, 16), (128, 63, 64), (130, 64, 200)])
def test_a_scan_is_made_coarse_as_the_commands_do_to_find_its_head(sides: tuple) -> None:
    scan, blocks = torch.rand(1, 1, *sides), [max(1, side // 64) for side in sides]
    torch.testing.assert_close(Coarse()(scan), avg_pool3d(scan[0], blocks, ceil_mode=True)[0], atol=1e-4, rtol=0)


def test_the_middle_of_the_head_is_that_of_inference() -> None:
    rng = np.random.default_rng(0)
    for i, (affine, sides) in enumerate(affines()):
        image = (rng.random(sides) > 0.2).astype(float)
        image[:, :, i % 4] = 0  # lines without a head
        found = Midline()(torch.tensor(head_of(image).T.copy()), torch.tensor(affine[:3]))
        assert float(found) == pytest.approx(midline(image, affine), abs=1e-3)


@pytest.mark.parametrize("percent", [0, 0.2, 5, 50, 95, 99.8, 100])
def test_percentiles_are_numpys(percent: float) -> None:
    values = np.random.default_rng(0).normal(size=10_007).astype(np.float32)
    assert float(percentile(torch.tensor(values), percent)) == pytest.approx(np.percentile(values, percent), rel=1e-6)


def test_scaling_by_percentiles_is_monais() -> None:
    scaling = {"lower": 2.0, "upper": 99.8, "b_min": 0.0, "b_max": 1.0, "clip": True}
    card = {**CARD, "intensity": [{"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", **scaling}]}
    scan, whole = torch.rand(1, 1, 15, 12, 14) * 700, torch.tensor([[0.0, 0, 0], [13, 11, 14]])
    image = Prepare(card)(scan, torch.eye(3, 4), whole)[0]
    expected = ScaleIntensityRangePercentiles(**scaling)(scan[0].permute(0, 3, 2, 1))
    torch.testing.assert_close(image, expected.as_tensor() if hasattr(expected, "as_tensor") else expected)


def test_neither_offset_nor_gain_of_a_scan_smaller_than_the_grid_matter() -> None:
    scan, limits = torch.rand(1, 1, 8, 9, 10), torch.tensor([[2.0, 1, 3], [11, 9, 10]])
    to_scan = torch.eye(3, 4) - torch.tensor([[0.0, 0, 0, 2], [0, 0, 0, 1], [0, 0, 0, 3]])
    image = Prepare(CARD)(scan, to_scan, limits)
    assert (image == 0).float().mean() > 0.5  # the padding
    for gain, offset in ((300, 0), (1, 100), (7, -40)):
        torch.testing.assert_close(Prepare(CARD)(gain * scan + offset, to_scan, limits), image, atol=1e-4, rtol=0)


def test_views_are_averaged_as_inference_does() -> None:
    from scripts.execution.agreement import Agreed

    logits, whole = torch.randn(2, 2, 14, 12, 15), torch.tensor([[0.0, 0, 0], [13, 11, 14]])
    ours = Agree({**CARD, "flip_averaging": True})(logits, whole)[0, :, 1:-1, 1:-1, 1:-1]
    put_back = torch.cat([logits[0], logits[1].flip(1)])  # as PredictionsInferer does
    torch.testing.assert_close(ours, Agreed("pred", views=2)({"pred": put_back})["pred"].as_tensor())


def test_a_scaling_that_the_page_has_not_is_refused() -> None:
    with pytest.raises(InputError, match="the page can only"):
        Prepare({**CARD, "intensity": [{"_target_": "NormalizeIntensityd", "keys": "image"}]})
