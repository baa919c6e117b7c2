"""Ranks share an epoch: each scan once, steps in common, and what one process would take at a time taken together."""

from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededSampler
from scripts.training.ranks import RankAverage, Ranks, RankSampler


def steps_of(sampler: RankSampler, batch_size: int, epoch: int, skip: int = 0) -> list[list[tuple[int, int]]]:
    """The batches of (index, seed) of an epoch as a loader makes them."""
    sampler.set_epoch(epoch)
    sampler.skip = skip
    items = list(sampler)
    return [items[i : i + batch_size] for i in range(0, len(items), batch_size)]


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("n_scans", [4, 9, 10, 11, 13])
def test_the_batches_of_a_step_are_one_process_s_batch(n_scans: int, batch_size: int, n_ranks: int) -> None:
    scans, epoch = list(range(n_scans)), 3
    ranks = [RankSampler(scans, 7, batch_size, n_ranks, rank) for rank in range(n_ranks)]
    alone = steps_of(SeededSampler(scans, 7), batch_size * n_ranks, epoch)
    assert {len(DataLoader(scans, batch_size, sampler=rank)) for rank in ranks} == {len(alone)}
    shares = [steps_of(rank, batch_size, epoch) for rank in ranks]
    for step, expected in enumerate(alone):
        together = [
            item for rank, share in zip(ranks, shares, strict=True) if not rank.is_spare(step) for item in share[step]
        ]
        assert sorted(together) == sorted(expected)
        assert {rank.scans(step) for rank in ranks} == {len(expected)}
    for rank, share in zip(ranks, shares, strict=True):  # within an epoch a run goes on after any step
        assert steps_of(rank, batch_size, epoch, skip=(len(alone) - 1) * batch_size) == share[-1:]


def test_more_processes_than_scans_are_one_line() -> None:
    with pytest.raises(InputError, match=r"^4 processes for 3 training scans: start fewer of them$"):
        RankSampler([0, 1, 2], 0, 1, num_replicas=4, rank=3)


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    ranks = Ranks({}, "cpu")
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.synchronized("network") == "network"


def test_what_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"^evaluating: one process does this; start it without torchrun$"):
        Ranks({"evaluating": []}, "cpu")
    with pytest.raises(InputError, match=r"^WORLD_SIZE 2 without LOCAL_RANK, .*; start processes by torchrun$"):
        Ranks({}, "cpu")


def test_ranks_on_the_same_scans_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    loader = DataLoader([0, 1], sampler=SeededSampler([0, 1], 0))
    with pytest.raises(InputError, match=r"^train#sampler SeededSampler: distributed.json has a sampler of its own"):
        RankAverage().attach(SimpleNamespace(data_loader=loader))
