"""mix.json mixes the scans that a run trains on, at any batch size; without mixing it is the recipe."""

from pathlib import Path

import pytest
import torch
from conftest import train_here
from ignite.engine import Engine

OFF = {"batch_size": 2, "accumulation_steps": 2, "mixup_probability": 0.0, "cutmix_probability": 0.0}


def run(cohort_dir: Path, folder: Path, **overrides: object) -> tuple[dict, list[torch.Tensor]]:
    """Weights after an epoch, and the labels that were trained on."""
    labels = []

    def note(engine: Engine) -> None:
        labels.append(torch.stack([item["label"].as_tensor() for item in engine.state.output]))

    options = {"epochs": 1, "report": False, "inner_fold": "none", "watch": {"train#trainer": note}}
    parser = train_here(cohort_dir, folder, "mix", **options, **overrides)
    return parser.get_parsed_content("network").state_dict(), labels


def test_labels_are_soft_and_some_scans_are_mixed(cohort_dir: Path, tmp_path: Path) -> None:
    labels = run(cohort_dir, tmp_path)[1]
    assert {label.shape for label in labels} == {(1, 2, 32, 32, 32)}
    assert all(torch.allclose(label.sum(1), torch.ones(1)) for label in labels)
    between = [((label > 0.001) & (label < 0.999)).any().item() for label in labels]
    assert 0 < sum(between) < len(between)  # mixup's


@pytest.mark.slow
def test_without_mixing_training_is_the_recipes(cohort_dir: Path, tmp_path: Path) -> None:
    off, soft = run(cohort_dir, tmp_path / "off", **OFF)
    dataset = {"_target_": "scripts.data.seeded_order.SeededDataset", "dataset": "@train#dataset"}
    plain, hard = run(cohort_dir, tmp_path / "plain", **OFF, **{"train#seeded_dataset": dataset, "soft_labels": False})
    assert all(torch.equal(one[:, 1:], other) for one, other in zip(soft, hard, strict=True))
    for key in plain:
        torch.testing.assert_close(off[key], plain[key], rtol=1e-3, atol=1e-5)
