"""The learning rate steps with the optimizer, starts at a hundredth of its peak, and ends near zero."""

import json
import math
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler

TRAIN = json.loads((Path(__file__).resolve().parents[2] / "configs" / "train.json").read_text())


def schedule_of(optimizer: torch.optim.Optimizer, iterations: int, warmup_fraction: float):
    """train.json's lr_scheduler, its own expressions evaluated."""
    values = {"iterations": iterations, "warmup_fraction": warmup_fraction}
    block = TRAIN["lr_scheduler"]
    evaluated = {}
    for key in ("total_steps", "pct_start"):
        expression = block[key].removeprefix("$")
        for name, value in values.items():
            expression = expression.replace(f"@{name}", repr(value))
        evaluated[key] = eval(expression)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, div_factor=block["div_factor"], **evaluated)


def run(accumulation_steps: int, n_batches: int = 5, epochs: int = 2, warmup_fraction: float = 0.2) -> list[float]:
    """Learning rates that a real trainer's optimizer used."""
    network = torch.nn.Conv3d(1, 2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    used = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    schedule = schedule_of(optimizer, epochs * n_batches, warmup_fraction)
    data = [{"image": torch.rand(1, 4, 4, 4), "label": torch.zeros(4, 4, 4).long()} for _ in range(n_batches)]
    handler = {key: value for key, value in TRAIN["train"]["schedule"].items() if key != "_target_"}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size=1),
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.CrossEntropyLoss(),
        accumulation_steps=accumulation_steps,
        train_handlers=[LrScheduleHandler(**(handler | {"lr_scheduler": schedule}))],
    )
    trainer.run()
    assert schedule.last_epoch == epochs * n_batches
    return used


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 9])
def test_an_optimizer_step_has_the_rate_of_its_mini_batch(accumulation_steps: int) -> None:
    used = run(accumulation_steps, n_batches=5, epochs=3)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule, expected = schedule_of(optimizer, 15, 0.2), []
    for iteration in range(15):
        if (iteration % 5 + 1) % accumulation_steps == 0 or iteration % 5 == 4:
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        schedule.step()
    assert used == pytest.approx(expected)


def test_it_starts_at_a_hundredth_peaks_at_the_maximum_and_falls_to_the_end() -> None:
    used = run(1, n_batches=20, epochs=5, warmup_fraction=0.1)
    assert used[0] == pytest.approx(0.01 / 100)
    peak = used.index(max(used))
    assert used[peak] == pytest.approx(0.01, rel=1e-2)
    assert peak == pytest.approx(0.1 * 100, abs=1)
    assert used[:peak] == sorted(used[:peak])
    assert used[peak:] == sorted(used[peak:], reverse=True)
    assert used[-1] < 1e-5


def test_rates_are_the_cosine_of_onecycle() -> None:
    used = run(1, n_batches=20, epochs=5, warmup_fraction=0.1)
    top = 0.1 * 101 - 1  # torch: the step at which the rate peaks
    for i, lr in enumerate(used):
        low, high, part = (1e-4, 0.01, i / top) if i <= top else (1e-8, 0.01, (100 - i) / (100 - top))
        assert lr == pytest.approx(low + (high - low) * (1 - math.cos(math.pi * part)) / 2, rel=1e-6)


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.01, 0.1, 1 / 3, 1])
def test_short_runs_and_extreme_warm_ups_work(warmup_fraction: float) -> None:
    for iterations in range(1, 60):
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
        schedule = schedule_of(optimizer, iterations, warmup_fraction)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
        for _ in range(iterations):
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-8, rel=1e-3)
