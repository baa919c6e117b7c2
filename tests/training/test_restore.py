"""A state is restored before any other handler starts, and an epoch goes on where it stopped."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededSampler
from scripts.training.random_states import random_states
from scripts.training.restore import RestoreState

N, BATCH = 10, 2


class Scans:
    """Scans that are their numbers."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, int]:
        return item


def trainer_of(seen: list[tuple[int, list[int]]]) -> Engine:
    """A trainer that writes down the epoch and the scans of each step."""
    trainer = Engine(lambda trainer, batch: seen.append((trainer.state.epoch, batch[0].tolist())))
    trainer.data_loader = DataLoader(Scans(), BATCH, sampler=SeededSampler(Scans(), seed=3))
    trainer.scaler = None
    return trainer


def restoring(folder: Path, iteration: int, best_epoch: int = -1) -> tuple[RestoreState, torch.nn.Module, Engine]:
    """What restores a state of ``iteration``, into this network and this evaluator."""
    network, evaluator = torch.nn.Linear(1, 1, bias=False), Engine(lambda *_: None)
    state = {
        "trainer": {"iteration": iteration, "epoch_length": N // BATCH, "max_epochs": 2},
        "best": {"best_metric": 0.5, "best_metric_epoch": best_epoch},
        "network": {"weight": torch.full((1, 1), 7.0)},
        "scaler": {},
        "random": [random_states()],
    }
    paths = {"path": folder / "checkpoint_last.pt", "model_path": folder / "model.pt"}
    run_folder = SimpleNamespace(claim=lambda: None, state=state, **paths)
    return RestoreState({"network": network}, run_folder, evaluator), network, evaluator


def test_what_starts_later_sees_what_is_restored_and_the_epoch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    undisturbed, seen, later = [], [], []
    trainer_of(undisturbed).run(trainer_of(undisturbed).data_loader, max_epochs=2)

    torch.manual_seed(5)
    restore, network, evaluator = restoring(tmp_path, iteration=7)
    expected = torch.rand(1)
    torch.rand(3)
    trainer = trainer_of(seen)
    restore.attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda: later.append((network.weight.item(), torch.rand(1))))
    trainer.run(trainer.data_loader, max_epochs=2)
    assert later == [(7.0, expected)]
    assert evaluator.state.best_metric == 0.5
    assert seen == undisturbed[7:]


def test_best_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    restore, _, _ = restoring(tmp_path, iteration=5, best_epoch=1)
    with pytest.raises(InputError, match=rf"^{tmp_path}/model.pt: the best weights so far, of epoch 1, are missing"):
        restore(trainer_of([]))


def test_a_part_that_the_state_does_not_have_is_one_line(tmp_path: Path) -> None:
    restore, network, _ = restoring(tmp_path, iteration=5)
    restore.save_dict["ema"] = network
    with pytest.raises(InputError, match=r"checkpoint_last.pt: has no ema, which this run saves; it cannot be resumed"):
        restore(trainer_of([]))


def test_an_order_that_cannot_be_repeated_is_one_line_within_an_epoch(tmp_path: Path) -> None:
    trainer = trainer_of([])
    trainer.data_loader = DataLoader(Scans(), BATCH)
    with pytest.raises(InputError, match="stopped within an epoch, whose order only a SeededSampler repeats"):
        restoring(tmp_path, iteration=7)[0](trainer)
