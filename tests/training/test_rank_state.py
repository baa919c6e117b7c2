"""What one rank is told or has seen, all ranks act on; only rank 0 writes."""

import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scripts.common.errors import InputError
from scripts.training.rank_state import RankRunFolder, RankState


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankState:
    """That of rank 1 of 2; what the other rank votes is its ``others``."""
    state = RankState({}, RankRunFolder(str(tmp_path), str(tmp_path), {}, "abc"), evaluator=None)
    state.trainer, state.others = SimpleNamespace(state=SimpleNamespace(device="cpu")), [0, 0]
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("ignite.distributed.barrier", lambda: None)
    monkeypatch.setattr("ignite.distributed.finalize", lambda: None)
    vote = lambda votes, op: torch.maximum(votes, torch.tensor(state.others))  # noqa: E731
    monkeypatch.setattr("ignite.distributed.all_reduce", vote)
    return state


def with_loss(loss: float) -> SimpleNamespace:
    batch = {"image": SimpleNamespace(meta={"filename_or_obj": ["a.nii.gz"]})}
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    facts = SimpleNamespace(output={"loss": torch.tensor(loss)}, batch=batch, epoch=1, iteration=1, epoch_length=1)
    return SimpleNamespace(state=facts, optimizer=optimizer, accumulation_steps=1)


def test_a_rank_stops_by_another_s_signal_and_not_by_its_own_alone(state: RankState, tmp_path: Path) -> None:
    state._on_signal(signal.SIGTERM, None)
    state._epoch_completed(SimpleNamespace(state=SimpleNamespace(epoch=1, max_epochs=2)))  # nobody has agreed yet
    state._told, state.others = 0, [int(signal.SIGTERM), 0]
    state._refuse_infinite_loss(with_loss(1.0))
    state._begun = True
    with pytest.raises(SystemExit) as stop:
        state._iteration_completed(with_loss(1.0))
    assert stop.value.code == 143
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_all_ranks_and_its_own_tells_the_scans(state: RankState) -> None:
    state.others = [0, 1]
    with pytest.raises(InputError, match=r"the loss is nan for a\.nii\.gz"):
        state._refuse_infinite_loss(with_loss(float("nan")))
    with pytest.raises(SystemExit) as stop:
        state._refuse_infinite_loss(with_loss(1.0))
    assert stop.value.code == 1


def test_the_folders_are_rank_0_s(state: RankState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"from": "rank 0"}
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects, src: objects.__setitem__(0, sent))
    state.run_folder.claim()
    state.run_folder.begin()
    assert state.run_folder.state == sent
    assert not list(tmp_path.iterdir())
