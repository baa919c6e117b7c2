"""Order and augmentation are functions of seed and epoch: the same for any number of workers, and from any step on."""

import pytest
import torch
from monai.data import CacheDataset, DataLoader, DistributedSampler
from monai.transforms import Compose, Lambdad, RandGaussianNoised, RandScaleIntensityd

from scripts.data.seeded_order import SeededDataset, SeededSampler

N = 10
RANKS = [{"num_replicas": 2, "rank": rank} for rank in (0, 1)]


def loader(seed: int = 0, workers: int = 0, batch_size: int = 2) -> tuple[DataLoader, SeededSampler]:
    transforms = [
        Lambdad("x", lambda x: x + 1),
        RandGaussianNoised("x", prob=0.5, std=1.0),
        RandScaleIntensityd("x", factors=0.5, prob=1.0),
    ]
    dataset = CacheDataset([{"x": torch.full((1, 2), float(i))} for i in range(N)], Compose(transforms), progress=False)
    sampler = SeededSampler(dataset, seed)
    generator = torch.Generator()
    return DataLoader(
        SeededDataset(dataset), num_workers=workers, sampler=sampler, batch_size=batch_size, generator=generator
    ), sampler


def epoch(number: int, skip: int = 0, **options: int) -> torch.Tensor:
    data, sampler = loader(**options)
    sampler.set_epoch(number)
    sampler.skip = skip
    return torch.stack([batch["x"].as_tensor() for batch in data])


def test_an_epoch_can_be_drawn_again() -> None:
    torch.manual_seed(1)
    first = epoch(3)
    torch.manual_seed(2)
    assert torch.equal(first, epoch(3))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    assert torch.equal(epoch(3), epoch(3, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rest_of_an_epoch_is_the_same_when_its_start_is_skipped(workers: int) -> None:
    assert torch.equal(epoch(3)[2:], epoch(3, skip=4, workers=workers))


def test_what_is_skipped_is_skipped_once() -> None:
    data, sampler = loader()
    sampler.skip = 4
    assert [len(list(data)) for _ in range(2)] == [3, 5]
    assert len(data) == 5


def test_epochs_and_seeds_differ_in_order_and_augmentation() -> None:
    def indices(seed: int, number: int) -> list[tuple[int, int]]:
        sampler = SeededSampler(range(N), seed)
        sampler.set_epoch(number)
        return list(sampler)

    drawn = [indices(seed, number) for seed in (0, 1) for number in (1, 2)]
    assert all(sorted(index for index, _ in items) == list(range(N)) for items in drawn)
    seeds = [seed for items in drawn for _, seed in items]
    assert len(set(seeds)) == len(seeds)
    assert indices(0, 1) != indices(0, 2)
    orders = [tuple(index for index, _ in indices(seed, number)) for seed in range(4) for number in range(6)]
    assert len(set(orders)) == len(orders)  # seed 0 at epoch 5 was seed 1 at epoch 4


def test_drawing_leaves_the_global_random_states_alone() -> None:
    state = torch.get_rng_state()
    epoch(1)
    assert torch.equal(state, torch.get_rng_state())


def test_processes_that_train_together_share_an_epoch_and_take_equally_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 3)
    shared = []
    for rank in range(3):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        sampler = SeededSampler(range(N), seed=5)
        sampler.set_epoch(4)
        shared.append(list(sampler))
        assert len(shared[-1]) == len(sampler) == 4
    items = [item for part in shared for item in part]
    assert sorted({index for index, _ in items}) == list(range(N))
    assert len({*items}) == N  # a scan that comes twice is the same twice


def test_two_processes_share_the_items_as_monais_sampler_does() -> None:
    for make in (SeededSampler, DistributedSampler):
        alone, *shared = (make(range(N), seed=5, **ranks) for ranks in ({"num_replicas": 1, "rank": 0}, *RANKS))
        for sampler in (alone, *shared):
            sampler.set_epoch(4)
        order = list(alone)
        assert [list(sampler) for sampler in shared] == [order[0::2], order[1::2]]
