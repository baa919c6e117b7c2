"""kspace.json spoils some of the scans that are trained on, within the recipe's range, and no others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import checked


def test_some_scans_are_spoilt_in_the_range_of_the_recipe_and_labels_are_not(cohort_dir: Path) -> None:
    parser = checked("kspace", dataset_dir=cohort_dir, spike_probability=0.5, lines_probability=0.5)
    spoilt, clean = parser.get_parsed_content("train#seeded_dataset"), parser.get_parsed_content("validate#dataset")
    without = checked("kspace", dataset_dir=cohort_dir, spike_probability=0.0, lines_probability=0.0)
    plain = without.get_parsed_content("train#seeded_dataset")
    changed = []
    for index in range(len(spoilt)):
        ours, theirs = spoilt[index, index], plain[index, index]
        assert (ours["image"].min(), ours["image"].max()) == (0, 1)
        assert torch.equal(ours["label"], theirs["label"])
        changed.append(not torch.equal(ours["image"], theirs["image"]))
        assert torch.equal(theirs["image"], plain.dataset[index]["image"])  # scaling twice is scaling once
    assert 0 < sum(changed) < len(changed)
    assert not any(type(transform).__name__.startswith("Rand") for transform in clean.transform.transforms)


@pytest.mark.parametrize("amplitude", [0.02, 0.2])
def test_a_spike_is_one_wave_of_the_amplitude_asked_for(cohort_dir: Path, amplitude: float) -> None:
    parser = checked("kspace", dataset_dir=cohort_dir, spike_amplitude=[amplitude, amplitude], spike_probability=1.0)
    scan, spike = parser.get_parsed_content("train#dataset")[0], parser.get_parsed_content("train#random_transforms")[0]
    flat = {"image": torch.full_like(scan["image"], 0.5)}
    for seed in range(3):
        wave = spike.set_random_state(seed)(flat)["image"][0].numpy() - 0.5
        spectrum = np.abs(np.fft.fftn(wave)) / wave.size
        there = spectrum > 0.001
        assert there.sum() in (1, 2)  # a frequency and its negative
        assert spectrum[there].sum() == pytest.approx(amplitude, rel=1e-3)
        assert np.abs(wave).max() <= amplitude * 1.001
