"""A run's log has one line an epoch, with that epoch's validation if there was one; history.csv has the same."""

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine, Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, ValidationHandler, from_engine
from monai.metrics import MSEMetric

from scripts.data.cohort import Cohort
from scripts.training.run_log import LossBar, RunLog


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
    cohort = Cohort("people", simulated, (9.0, 9.0, 9.0), (9, 9, 9), [{}] * 4, [{}] * 3, [{}] * 2, "")
    folder = SimpleNamespace(record=tmp_path / "out" / "run.json", differences={"seed": 7, "loss_def#_target_": "L"})
    log = RunLog(cohort, ((1.0, 1.0, 2.5), (4, 4, 4)), evaluator, folder, "/models/model.pt")
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
    for fact in (
        "people",
        "4 training, 3 validation, 2 test",
        "1x1x2.5 mm",
        'seed 7, loss_def#_target_ "L"',
        "2 parameters",
        "float32",
    ):
        assert fact in caplog.text
    assert ("SIMULATED" in caplog.text) is simulated
    assert f"Best error {history['error'].max():.3f}" in caplog.text
    assert "Weights (best): /models/model.pt" in caplog.text


def scripted_run(folder: Path, scores: dict[int, float], scans: int = 1) -> pandas.DataFrame:
    """Three epochs of a trainer that does nothing, with these validation scores at these epochs.

    Its mini-batches have one scan, but the last has ``scans``.
    """
    validation = [{}] * bool(scores)
    cohort = Cohort("people", False, (1.0, 1.0, 1.0), (4, 4, 4), [{}], validation, [{}], "")
    network = torch.nn.Conv3d(1, 1, 1)
    evaluator, trainer = (
        Engine(lambda engine, batch: None),
        Engine(lambda engine, batch: [{"loss": batch}] * (scans if batch == 6 else 1)),
    )
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    trainer.network, trainer.amp, trainer.state.device = network, False, "cpu"
    trainer.optimizer = torch.optim.SGD(network.parameters(), lr=0.5)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine: Engine) -> None:
        epoch = engine.state.epoch
        if epoch in scores:
            evaluator.state.epoch, evaluator.state.metrics = epoch, {"score": scores[epoch]}
            if scores[epoch] > evaluator.state.best_metric:
                evaluator.state.best_metric, evaluator.state.best_metric_epoch = scores[epoch], epoch

    @trainer.on(Events.ITERATION_COMPLETED)
    def record(engine: Engine) -> None:
        if (loss := engine.state.output[0]["loss"]) != 2:  # as a handler that does not run at every step
            engine.state.terms["own"] = {1.0: 1.0, 6.0: 9.0}[loss]

    evaluator.state.key_metric_name = "score"
    run_folder = SimpleNamespace(record=folder / "run.json", differences={})
    RunLog(cohort, ((1, 1, 1), (4, 4, 4)), evaluator, run_folder, "/models/model.pt").attach(trainer)
    trainer.run([1.0, 2.0, 6.0], max_epochs=3)
    return pandas.read_csv(folder / "history.csv")


def test_the_best_epochs_so_far_are_marked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        history = scripted_run(tmp_path, {1: 0.25, 2: 0.125, 3: 0.5})
    lines = [message for message in caplog.messages if message.startswith("epoch")]
    assert [line.endswith("  best") for line in lines] == [True, False, True]
    assert ["score 0.250" in lines[0], "score 0.125" in lines[1], "score 0.500" in lines[2]] == [True] * 3
    assert history["score"].tolist() == [0.25, 0.125, 0.5]
    assert history["loss"].tolist() == [3.0, 3.0, 3.0]
    assert "Best score 0.500 at epoch 3" in caplog.text


def test_a_run_without_validation_has_no_metrics_and_ends_with_its_final_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        history = scripted_run(tmp_path, {})
    assert history["epoch"].tolist() == [1, 2, 3]
    assert list(history) == ["epoch", "loss", "lr", "skipped_steps", "own"]
    assert "Weights (final): /models/model.pt" in caplog.text
    assert "Best" not in caplog.text


def test_a_mean_is_over_scans_and_handlers_have_columns_of_their_own(tmp_path: Path) -> None:
    history = scripted_run(tmp_path, {2: 0.5}, scans=2)
    assert history["loss"].tolist() == [(1 + 2 + 2 * 6) / 4] * 3
    assert history["own"].tolist() == pytest.approx([(1 + 2 * 9) / 3] * 3)


def test_the_bar_has_loss_rate_and_seconds_of_a_step(capsys: pytest.CaptureFixture) -> None:
    bar = json.loads((ROOT / "configs" / "train.json").read_text())["train"]["progress"]
    trainer = Engine(lambda engine, batch: [{"loss": torch.tensor(batch)}])
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.25)
    LossBar(desc=bar["desc"], bar_format=bar["bar_format"], mininterval=0).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: time.sleep(0.02))
    trainer.run([0.5, 0.125, 0.75, 0.25], max_epochs=1)
    shown = capsys.readouterr().err.split("\r")
    assert any(re.search(r"loss=0.75, lr=0.25 \[.*, +0.0\ds/it\]", line) for line in shown), shown


def test_seconds_are_split_into_data_steps_and_validation(tmp_path: Path) -> None:
    class Slow(list):
        def __iter__(self):
            for item in super().__iter__():
                time.sleep(0.05)
                yield item

    trainer, evaluator = Engine(lambda *_: time.sleep(0.02) or [{"loss": 1.0}]), Engine(lambda *_: time.sleep(0.2))
    evaluator.state.best_metric, evaluator.state.best_metric_epoch = -1, -1
    trainer.network, trainer.state.device = torch.nn.Conv3d(1, 1, 1), "cpu"
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), lr=0.5)

    @trainer.on(Events.EPOCH_COMPLETED(every=2))
    def validate(trainer: Engine) -> None:
        evaluator.run([0])
        evaluator.state.epoch = trainer.state.epoch

    folder = SimpleNamespace(record=tmp_path / "run.json", differences={})
    cohort = Cohort("people", False, (1.0, 1.0, 1.0), (4, 4, 4), [{}], [], [{}], "")
    RunLog(cohort, ((1, 1, 1), (4, 4, 4)), evaluator, folder, "model.pt", seconds=True).attach(trainer)
    trainer.run(Slow([0, 1, 2]), max_epochs=2)
    history = pandas.read_csv(tmp_path / "history.csv")
    assert history["seconds_data"].tolist() == pytest.approx([0.15, 0.15], abs=0.05)
    assert history["seconds_step"].tolist() == pytest.approx([0.06, 0.06], abs=0.03)
    assert history["seconds_validation"].tolist() == pytest.approx([0, 0.2], abs=0.08)
    parts = history[["seconds_data", "seconds_step", "seconds_validation"]].sum(axis=1)
    assert (parts < history["seconds"]).all()
    assert (parts > 0.7 * history["seconds"]).all()
