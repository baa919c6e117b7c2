"""What is shown of a run elsewhere: its picture, and which package is missing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.common.errors import InputError
from scripts.training import tracking
from scripts.training.tracking import Tracking, engine_of, outlined_slice

GREEN, RED = [0, 1, 0], [1, 0, 0]


def item_of(true: torch.Tensor, pred: torch.Tensor) -> dict:
    """What an evaluator has after a scan: masks (8, 10, 6) as one-hot, and an image whose front is twice as bright."""
    image = torch.full((1, 8, 10, 6), 0.25)
    image[:, :, 5:] = 0.5
    return {"image": image, "label": torch.stack([1 - true, true]), "pred": torch.stack([1 - pred, pred])}


def test_the_picture_is_the_slice_of_most_lesion_with_its_outline_in_green_and_the_predictions_in_red() -> None:
    true, pred = torch.zeros(8, 10, 6), torch.zeros(8, 10, 6)
    true[1:4, 1:4, 2] = true[0, 0, 4] = pred[4:7, 6:9, 2] = 1
    (picture,) = outlined_slice([item_of(true, pred), {}])
    assert picture.shape == (3, 10, 8)
    assert 0 <= picture.min() <= picture.max() <= 1
    picture = np.rot90(picture, -1, axes=(1, 2))  # as the masks lie: front was up
    for colour, mask in ((GREEN, true), (RED, pred)):
        there = (picture == np.array(colour)[:, None, None]).all(0)
        expected = mask[..., 2].numpy() > 0
        expected[tuple(np.argwhere(expected).mean(0).astype(int))] = False  # the middle of 3 x 3 is no outline
        assert (there == expected).all()
    assert picture[:, 0, 0].tolist() == [0.5] * 3
    assert picture[:, 0, -1].tolist() == [1] * 3


def test_without_a_true_lesion_it_is_the_predictions_slice_and_without_both_the_middle() -> None:
    empty, pred = torch.zeros(8, 10, 6), torch.zeros(8, 10, 6)
    pred[2, 2, 1] = 1
    assert (outlined_slice([item_of(empty, pred)])[0] == np.array(RED)[:, None, None]).all(0).sum() == 1
    assert not (outlined_slice([item_of(empty, empty)])[0] == np.array(RED)[:, None, None]).all(0).any()


def test_a_row_of_the_history_is_an_epochs_metrics() -> None:
    state = engine_of({"epoch": 3, "loss": 0.5, "val_mean_dice": 0.25}).state
    assert (state.epoch, state.metrics) == (3, {"loss": 0.5, "val_mean_dice": 0.25})


@pytest.mark.parametrize(("missing", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")])
def test_a_package_that_is_missing_is_one_line_with_its_remedy(
    missing: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None if name == missing else name)
    makers = {"scalars": print, "pictures": print, "mlflow": print}
    with pytest.raises(
        InputError, match=f"^{missing}: is not installed; pip install {package}, or do without by --{missing} false$"
    ):
        Tracking(Engine(print), SimpleNamespace(), "run", **makers)
    del makers["scalars" if missing == "tensorboard" else missing]
    Tracking(Engine(print), SimpleNamespace(), "run", **makers)
