"""Entries of the menus are what their names say, by their formulas."""

import math

import pytest
import torch
from conftest import MENUS, checked
from monai.bundle import ConfigParser
from monai.transforms import Compose, RandomizableTrait

N = 100  # steps


def config(**overrides: object) -> ConfigParser:
    return checked(**{"network_def#channels": 2, "iterations": N, **overrides})


def rates(name: str, **overrides: object) -> list[float]:
    """The learning rate of each step over the greatest."""
    parser = config(**{"schedule_name": name, "learning_rate": 0.5, "warmup_fraction": 0.1, **overrides})
    scheduler, optimizer = map(parser.get_parsed_content, ("lr_scheduler", "optimizer"))
    found = []
    for _ in range(N):
        found.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return found


def cosine(t: float) -> float:
    return (1 + math.cos(math.pi * t)) / 2


BEHIND = {  # step i of n behind the warm-up
    "cosine": ({}, lambda i, n: cosine(i / n)),
    "warm_restarts": ({"cycles": 3}, lambda i, n: cosine(i % -(-n // 3) / -(-n // 3))),
    "step": ({"step_factor": 0.5}, lambda i, n: 0.5 ** (i // (n // 3))),
    "multistep": ({"milestones": [0.2, 0.6]}, lambda i, n: 0.1 ** ((i >= round(0.2 * n)) + (i >= round(0.6 * n)))),
    "exponential": ({"final_fraction": 0.01}, lambda i, n: 0.01 ** (i / n)),
    "polynomial": ({"power": 2.0, "final_fraction": 0.04}, lambda i, n: max(0.04, (1 - i / n) ** 2)),
}
FORMULAS = {
    "warmup_linear": ({}, lambda i: min((i + 1) / 11, (N - i) / 90)),
    "warmup_cosine": ({}, lambda i: 0.01 + 0.99 * i / 10 if i < 10 else cosine((i - 10) / 90)),
    "noam": ({}, lambda i: min(((i + 1) / 10) ** -0.5, (i + 1) / 10)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_schedule_follows_its_formula(name: str) -> None:
    overrides, formula = FORMULAS[name]
    assert rates(name, **overrides) == pytest.approx([formula(i) for i in range(N)], abs=1e-6)


@pytest.mark.parametrize("name", BEHIND)
@pytest.mark.parametrize("steps", [0, 1, 10])
def test_a_schedule_follows_its_formula_behind_a_warm_up(name: str, steps: int) -> None:
    overrides, formula = BEHIND[name]
    expected = [(i + 1) / (steps + 1) for i in range(steps)] + [formula(i, N - steps) for i in range(N - steps)]
    assert rates(name, **overrides, warmup_fraction=steps / N) == pytest.approx(expected, abs=1e-6)


def test_arguments_of_a_schedule_behind_a_warm_up_can_be_changed() -> None:
    found = rates("warm_restarts", **{"lr_scheduler#T_0": 10, "lr_scheduler#T_mult": 2, "warmup_steps": 0})
    assert [i for i in range(1, N) if found[i] > found[i - 1]] == [10, 30, 70]


def test_every_schedule_has_a_formula_here() -> None:
    assert {*FORMULAS, *BEHIND, "one_cycle", "plateau"} == set(MENUS["schedule"])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
def test_one_cycle_cycles_the_momentum_only_of_optimizers_that_have_one(name: str) -> None:
    parser = config(optimizer_name=name)
    scheduler, optimizer = map(parser.get_parsed_content, ("lr_scheduler", "optimizer"))
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    group = optimizer.param_groups[0]
    momentum = group["betas"][0] if name.startswith("adam") else group["momentum"]
    assert momentum == 0 if name == "rmsprop" else 0.85 < momentum < 0.95 and momentum != 0.9


@pytest.mark.parametrize(
    ("given", "momentum"),
    [
        ({"optimizer_name": "sgd", "momentum": 0.95}, 0.95),
        ({"optimizer_name": "sgd", "optimizer#momentum": 0.97}, 0.97),
        ({"optimizer#betas": [0.8, 0.99]}, 0.8),
    ],
)
def test_one_cycle_keeps_a_momentum_that_was_given(given: dict, momentum: float) -> None:
    scheduler, optimizer = map(config(**given).get_parsed_content, ("lr_scheduler", "optimizer"))
    for _ in range(3):
        group = optimizer.param_groups[0]
        assert group.get("momentum", group.get("betas", [0])[0]) == momentum
        optimizer.step()
        scheduler.step()


LOSSES = MENUS["loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_least_for_the_truth_and_takes_soft_labels(name: str) -> None:
    torch.manual_seed(0)
    label = torch.zeros(2, 1, 12, 12, 12)
    label[:, :, 4:9, 3:8, 5:9] = 1
    truth = torch.cat([1 - label, label], dim=1)
    loss = config(loss_name=name).get_parsed_content("loss")
    hard = {scale: loss(scale * (2 * truth - 1), label).item() for scale in (-2.0, 0.0, 1.0, 2.0)}
    assert hard[2.0] < hard[1.0] < hard[0.0] < hard[-2.0]
    if name != "cross_entropy":
        soft = config(loss_name=name, soft_labels=True).get_parsed_content("loss")
        assert soft(truth * 0.3, truth).item() == pytest.approx(loss(truth * 0.3, label).item(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MENUS["augmentation"][1:])
def test_an_augmentation_is_random_keeps_masks_masks_and_grids_grids(name: str) -> None:
    transforms = config(augmentation_name=name, spatial_size=[32, 32, 32]).get_parsed_content("train#augmentation")
    assert all(isinstance(transform, RandomizableTrait) for transform in transforms)
    augment = Compose(transforms).set_random_state(3)
    torch.manual_seed(0)
    image = torch.rand(1, 32, 32, 32)
    label = (torch.nn.functional.avg_pool3d(image, 5, 1, 2) > 0.52).to(torch.uint8)
    changed = 0
    for _ in range(8):
        out = augment({"image": image.clone(), "label": label.clone()})
        assert out["image"].shape == out["label"].shape == (1, 32, 32, 32)
        assert set(out["label"].unique().tolist()) <= {0, 1}
        assert out["image"].isfinite().all()
        changed += not torch.equal(out["image"], image)
    assert changed
