"""mixup and cutmix mix image and label alike, as the papers say, and as a function of the item's seed alone."""

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, RandScaleIntensityd

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededDataset, SeededSampler
from scripts.techniques.mix import MixedDataset

N, SHAPE = 6, (12, 16, 8)


def scans(random: bool = False) -> CacheDataset:
    """Scan i is i everywhere; half of the scans are all lesion."""
    data = [
        {
            "image": MetaTensor(torch.full((1, *SHAPE), float(i)), meta={"filename_or_obj": f"{i}.nii"}),
            "label": MetaTensor(torch.full((1, *SHAPE), i % 2, dtype=torch.uint8)),
        }
        for i in range(N)
    ]
    transforms = [RandScaleIntensityd("image", factors=0.5, prob=1.0)] if random else []
    return CacheDataset(data, Compose(transforms), progress=False)


def mixed(mixup: float, cutmix: float, alpha: float = 0.2, **options: bool) -> MixedDataset:
    return MixedDataset(scans(**options), mixup, alpha, cutmix)


def test_unmixed_scans_are_themselves_with_soft_labels() -> None:
    for index in range(N):
        item = mixed(0, 0)[index, 7]
        assert torch.equal(item["image"], torch.full((1, *SHAPE), float(index)))
        assert item["label"].dtype == torch.float32
        assert torch.equal(item["label"][1], torch.full(SHAPE, float(index % 2)))
        assert torch.equal(item["label"].sum(0), torch.ones(SHAPE))


@pytest.mark.slow
def test_mixup_is_a_weighted_mean_of_two_scans_and_of_their_labels() -> None:
    weights = []
    for seed in range(1500):
        item = mixed(1, 0, alpha=0.4)[2, seed]  # scan 2 has no lesion
        t = 1 - item["label"][1, 0, 0, 0].item()
        value = item["image"].unique()
        assert len(value) == len(item["label"][1].unique()) == 1
        assert torch.allclose(item["label"].sum(0), torch.ones(SHAPE))
        others = [(value.item() - 2 * t) / (1 - t)] if t < 0.999 else []
        if others and round(others[0]) % 2:  # the other one is all lesion, so the label tells t
            assert others[0] == pytest.approx(round(others[0]), abs=0.05)
            weights.append(t)
    theirs = np.random.default_rng(0).beta(0.4, 0.4, 10**5)
    theirs = theirs[theirs < 0.999]
    assert np.mean(weights) == pytest.approx(theirs.mean(), abs=0.05)
    assert np.var(weights) == pytest.approx(theirs.var(), abs=0.02)


def test_cutmix_puts_a_box_of_another_scan_into_image_and_label() -> None:
    shares, partners = [], set()
    for seed in range(300):
        item = mixed(0, 1)[2, seed]
        image, lesion = item["image"][0].numpy(), item["label"][1].numpy()
        where = np.argwhere(image != 2)
        if not len(where):  # smaller than a voxel
            continue
        (low, high), other = (where.min(0), where.max(0) + 1), image[tuple(where[0])]
        assert len(where) == np.prod(high - low)
        assert (image[image != 2] == other).all()
        assert (lesion == (image % 2)).all()
        partners.add(float(other))
        shares.append(len(where) / image.size)
    assert partners == {0, 1, 3, 4, 5}  # any, but itself
    # A side of share s = u ** (1/3), centred uniformly and cut off at the edges, has s - s**2 / 4 of the grid's: three
    sides = np.random.default_rng(0).random(10**5) ** (1 / 3)
    assert np.mean(shares) == pytest.approx(((sides - sides**2 / 4) ** 3).mean(), abs=0.03)


def test_what_the_dataset_keeps_is_not_changed() -> None:
    dataset = mixed(0.5, 0.5)
    for seed in range(20):
        dataset[seed % N, seed]
    assert all(torch.equal(dataset.dataset[i]["image"], torch.full((1, *SHAPE), float(i))) for i in range(N))


def test_shares_are_those_asked_for() -> None:
    dataset, kinds = mixed(0.3, 0.2), {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(1000):
        values = dataset[0, seed]["image"].unique()
        kinds["cutmix" if len(values) > 1 else "none" if values == 0 else "mixup"] += 1
    assert kinds["mixup"] == pytest.approx(300, abs=60)  # some mix so little, or all of a box, that it cannot be seen
    assert kinds["cutmix"] == pytest.approx(200, abs=50)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_are_functions_of_seed_and_epoch_whatever_the_workers(batch_size: int) -> None:
    def epoch(workers: int) -> list[dict]:
        dataset = scans(random=True)
        sampler = SeededSampler(dataset, 3)
        sampler.set_epoch(2)
        torch.manual_seed(workers)
        np.random.seed(workers)
        wrapped = MixedDataset(dataset, 0.5, 0.2, 0.5)
        return list(DataLoader(wrapped, batch_size=batch_size, sampler=sampler, num_workers=workers))

    for one, other in zip(epoch(0), epoch(1), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
        assert one["label"].shape == (len(one["image"]), 2, *SHAPE)
        assert len(one["image"].meta["filename_or_obj"]) == len(one["image"])


def test_the_scan_itself_is_augmented_as_without_mixing() -> None:
    for seed in range(5):
        ours, theirs = mixed(0, 0, random=True)[3, seed], SeededDataset(scans(random=True))[3, seed]
        assert torch.equal(ours["image"], theirs["image"])
        assert ours["image"].meta["filename_or_obj"] == "3.nii"


def test_a_scan_is_mixed_once_and_with_another_one() -> None:
    with pytest.raises(InputError, match=r"mixup_probability \+ cutmix_probability is 1.4: "):
        MixedDataset(scans(), 0.7, 0.2, 0.7)
    with pytest.raises(InputError, match="need another scan, there are 1"):
        MixedDataset(CacheDataset([{}], Compose([]), progress=False), 0.5, 0.2, 0)
