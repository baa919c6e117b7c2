"""progressive.json trains on coarser grids first and validates on the full one."""

from pathlib import Path

import pytest
from conftest import train_here
from ignite.engine import Engine


def sides(cohort_dir: Path, folder: Path, *overlays: str, **overrides: object) -> tuple[dict, set]:
    """Sides of what was trained on, an epoch each; sides of what was validated."""
    trained, validated = {}, set()

    def train(engine: Engine) -> None:
        item = engine.state.output[0]
        trained.setdefault(engine.state.epoch, set()).update(item[key].shape[1:] for key in ("image", "label", "pred"))

    def validate(engine: Engine) -> None:
        validated.update(item["image"].shape[1:] for item in engine.state.output)

    watch = {"train#trainer": train, "validate#evaluator": validate}
    train_here(cohort_dir, folder, "progressive", *overlays, report=False, watch=watch, **overrides)
    return trained, validated


@pytest.mark.slow
def test_training_goes_from_coarse_to_fine_and_validation_does_not(cohort_dir: Path, tmp_path: Path) -> None:
    trained = {1: {(16,) * 3}, 2: {(24,) * 3}, 3: {(32,) * 3}}
    assert sides(cohort_dir, tmp_path, epochs=3) == (trained, {(32,) * 3})


def test_together_with_mix_the_soft_labels_are_resized(cohort_dir: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "progressive_shares": [0.5], "inner_fold": "none"}
    assert sides(cohort_dir, tmp_path, "mix", **options) == ({1: {(16,) * 3}}, set())
