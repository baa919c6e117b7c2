"""A scan unlike those that the weights were trained on is named in a line: T1w, noise, nothing at all."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.inference.usual import REACH, appearance, limits_of, unusual, write_usual
from scripts.weights.card import read_card


def blobs(seed: int, sign: float = 1.0, shape: tuple = (32, 40, 32)) -> np.ndarray:
    """An ellipsoid with fine bright (or, of ``sign`` -1, dark) structures in it."""
    rng, grid = np.random.default_rng(seed), np.indices(shape)
    centre, axes = (np.reshape(v, (3, 1, 1, 1)) for v in (np.array(shape) / 2, np.array(shape) / 2.5))
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2)
    inside = (((grid - centre) / axes) ** 2).sum(0) < 1
    return (inside * (1 + sign * 0.8 * (field > np.quantile(field, 0.9)))).astype(np.float32)


def test_what_is_fine_and_bright_is_told_from_what_is_fine_and_dark_whatever_the_unit() -> None:
    bright, dark = (appearance(blobs(0, sign), (3.0, 3.0, 3.0)) for sign in (1, -1))
    assert bright["detail"] > 0.5
    assert dark["detail"] < -0.5
    assert appearance(700 * blobs(0), (3.0, 3.0, 3.0)) == pytest.approx(bright, rel=1e-4)


def test_noise_has_the_roughness_of_noise_and_a_fine_grid_that_of_a_coarse_one() -> None:
    """Independent neighbours differ by sqrt(2) standard deviations."""
    noise = np.random.default_rng(0).normal(5, 1, (32, 32, 32)).astype(np.float32)
    assert appearance(noise, (3.0, 3.0, 3.0))["roughness"] == pytest.approx(2**0.5, rel=0.02)
    assert appearance(noise, (3.0, 3.0, 3.0))["detail"] == pytest.approx(0, abs=0.1)
    fine = blobs(1).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    assert appearance(fine, (1.0, 1.0, 1.0)) == pytest.approx(appearance(blobs(1), (3.0, 3.0, 3.0)), rel=1e-4)


def test_limits_are_deviations_of_each_side_from_the_median() -> None:
    """Against the normal distribution, whose deviation is the same on both sides."""
    draws = np.random.default_rng(0).normal(7, 2, 20_000)
    for name, limits in limits_of([dict.fromkeys(REACH, value) for value in draws]).items():
        down, up = REACH[name]
        assert limits == pytest.approx([7 - 2 * down, 7 + 2 * up], abs=0.2)


@pytest.mark.parametrize("volume", [np.zeros((32, 40, 32)), np.full((32, 40, 32), 3.0), blobs(9, sign=-1)])
def test_what_is_not_usual_is_named_and_without_limits_nothing_is(volume: np.ndarray) -> None:
    card = {"spacing": [3.0] * 3, "usual": limits_of([appearance(blobs(seed), (3.0,) * 3) for seed in range(8)])}
    assert "detail" in unusual(volume, card)
    assert unusual(blobs(0), card) is None
    assert unusual(volume, {"spacing": [3.0] * 3}) is None


class Training(torch.utils.data.Dataset):
    """Takes an index and a seed, as ``SeededDataset``."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: tuple[int, int]) -> dict:
        return {"image": torch.from_numpy(blobs(item[1]))[None]}


def test_training_scans_give_a_card_its_limits_by_which_inference_warns(
    segment: Callable, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, bright, dark = tmp_path / "model.pt", tmp_path / "in" / "a_T2w.nii.gz", tmp_path / "in" / "b_T2w.nii.gz"
    path.write_bytes(weights.read_bytes())
    card = json.loads(weights.with_suffix(".json").read_text()) | {"spatial_size": [32, 40, 32]}
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"model.json: spacing is \[3.0, 3.0, 3.0\], but \[1, 1, 1\]"):
        write_usual(str(path), {**card, "spacing": (1, 1, 1)}, Training())
    write_usual(str(path), {**card, "spacing": (3.0, 3.0, 3.0)}, Training(), scans=12)
    written = json.loads(path.with_suffix(".json").read_text())
    assert written == {**card, "usual": written["usual"]}
    for scan, sign in ((bright, 1), (dark, -1)):
        write(scan, blobs(50, sign), np.diag([3.0, 3.0, 3.0, 1.0]))
    with caplog.at_level(logging.WARNING):
        segment(tmp_path / "in", tmp_path / "out", ckpt_path=str(path))
    (line,) = [message for message in caplog.messages if "unlike" in message]
    assert line.startswith(f"{dark}: unlike the scans these weights were trained on: detail -")
    table = (tmp_path / "out" / "lesions.tsv").read_text().splitlines()
    assert "detail -" not in table[1]
    assert "detail -" in table[2]


@pytest.mark.parametrize(
    ("name", "contrasts", "found"),
    [
        ("sub-1_T1w", {}, "a T1w (usual T2w)"),
        ("sub-1_FLAIR", {"contrasts": ["T1w", "T2w"]}, "a FLAIR (usual T1w, T2w)"),
        ("sub-1_T1w", {"contrasts": ["T1w", "T2w"]}, None),
        ("sub-1_T2w", {}, None),
        ("brain", {}, None),
    ],
)
def test_a_scan_named_as_of_another_contrast_is_unusual(name: str, contrasts: dict, found: str | None) -> None:
    card = {"usual": {"detail": [-99, 99]}, "spacing": [3.0] * 3} | contrasts
    assert unusual(blobs(50), card, name) == found


@pytest.mark.parametrize("limits", [[0], [0, 1, 2], ["a", "b"], 3])
def test_limits_that_are_none_are_told_by_the_card(weights: Path, tmp_path: Path, limits: object) -> None:
    (tmp_path / "m.pt").write_bytes(weights.read_bytes())
    card = json.loads(weights.with_suffix(".json").read_text()) | {"usual": {"detail": limits}}
    (tmp_path / "m.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"m.json: usual#detail"):
        read_card(str(tmp_path / "m.pt"))


@pytest.mark.parametrize("scans", [0, -1, 9])
def test_too_few_scans_tell_nothing_and_leave_the_card(tmp_path: Path, scans: int) -> None:
    with pytest.raises(InputError, match=f"^scans {scans}: expected 10 or more"):
        write_usual(str(tmp_path / "model.pt"), {}, [], scans=scans)
    assert not list(tmp_path.iterdir())
