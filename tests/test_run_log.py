"""A run's log has one line an epoch, with that epoch's validation if there was one; history.csv has the same."""

from pathlib import Path

import pandas
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, ValidationHandler, from_engine
from monai.metrics import MSEMetric

from scripts.cohort import Cohort
from scripts.run_log import RunLog


@pytest.mark.parametrize("simulated", [True, False])
def test_lines_and_history(tmp_path: Path, caplog: pytest.LogCaptureFixture, simulated: bool) -> None:
    network = torch.nn.Conv3d(1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.25)
    data = [{"image": torch.rand(1, 4, 4, 4), "label": torch.rand(1, 4, 4, 4)} for _ in range(4)]
    device = torch.device("cpu")
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(data),
        network=network,
        key_val_metric={"error": IgniteMetricHandler(MSEMetric(), output_transform=from_engine(["pred", "label"]))},
    )
    cohort = Cohort("people", simulated, (1.0, 1.0, 2.5), (4, 4, 4), [{}] * 4, [{}] * 3, [{}] * 2)
    log = RunLog(cohort, evaluator, ["error"], {"seed": 7}, str(tmp_path / "out"), "/models/model.pt")
    losses: dict[int, list[float]] = {}
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=5,
        train_data_loader=DataLoader(data),
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        train_handlers=[ValidationHandler(2, evaluator), log],
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: losses.setdefault(e.state.epoch, []).append(float(e.state.output[0]["loss"])),
    )
    with caplog.at_level("INFO"):
        trainer.run()

    history = pandas.read_csv(tmp_path / "out" / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert history["loss"].tolist() == pytest.approx([sum(losses[e]) / 4 for e in range(1, 6)])
    assert history["lr"].tolist() == [0.25] * 5
    assert history["error"].notna().tolist() == [False, True, False, True, False]
    lines = [message for message in caplog.messages if message.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    assert ["error" in line for line in lines] == [False, True, False, True, False]
    for fact in ("people", "4 training, 3 validation, 2 test", "1x1x2.5 mm", "seed 7", "2 parameters", "fp32"):
        assert fact in caplog.text
    assert ("SIMULATED" in caplog.text) is simulated
    assert f"Best error {history['error'].max():.3f}" in caplog.text
    assert "Weights (best): /models/model.pt" in caplog.text
