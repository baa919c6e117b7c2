"""Statistics that are averaged anew are those of the scans, and cost the training nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train_here
from monai.data import DataLoader
from monai.engines import SupervisedTrainer

from scripts.common.errors import InputError
from scripts.networks.meshnet import MeshNet
from scripts.training.norm_statistics import NormStatistics


@pytest.mark.parametrize(("interval", "epochs"), [(1, [1, 2, 3]), (2, [2, 3])])
def test_the_statistics_are_the_average_over_the_first_scans(interval: int, epochs: list[int]) -> None:
    norm = torch.nn.BatchNorm3d(1)
    images = [torch.randn(1, 4, 4, 4) * (i + 1) + i for i in range(5)]
    seen = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader([{"image": image, "label": image} for image in images]),
        network=norm,
        optimizer=torch.optim.SGD(norm.parameters(), lr=0.0),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[NormStatistics(norm, n_scans=3, interval=interval)],
    )
    trainer.add_event_handler(
        "EPOCH_COMPLETED", lambda: seen.append((norm.running_mean.item(), norm.running_var.item()))
    )
    trainer.run()
    mean, variance = np.mean([image.mean() for image in images[:3]]), np.mean([image.var() for image in images[:3]])
    exact = [np.allclose(found, (mean, variance), rtol=1e-5) for found in seen]
    assert exact == [epoch in epochs for epoch in (1, 2, 3)]
    assert norm.momentum == 0.1


@pytest.mark.slow
def test_the_weights_are_trained_as_without(cohort_dir: Path, tmp_path: Path) -> None:
    weights = []
    for n_scans in (0, 2):
        options = {"epochs": 2, "inner_fold": "none", "report": False, "update_bn_scans": n_scans}
        train_here(cohort_dir, tmp_path / str(n_scans), **options)
        weights.append(torch.load(tmp_path / str(n_scans) / "model.pt"))
    same = {key: torch.equal(weights[0][key], weights[1][key]) for key in weights[0]}
    assert [key for key, equal in same.items() if not equal] == [
        key for key in same if ".running_" in key or ".num_batches_" in key
    ]


def test_statistics_that_training_goes_by_are_left_alone() -> None:
    with pytest.raises(InputError, match="update_bn_scans: the network trains by its statistics"):
        NormStatistics(MeshNet(channels=1, norm_eval=True), 3)
