"""tracking.json: TensorBoard and MLflow have the history, once, however often the run was stopped."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
import torch
from conftest import train_here
from ignite.engine import Engine, Events
from PIL import Image

from scripts.training.run_log import RunLog

mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
EPOCHS = 4
pytestmark = pytest.mark.slow  # MLflow takes 10 s to make its database


def train(cohort_dir: Path, folder: Path, *overlays: str, **overrides: object) -> None:
    train_here(cohort_dir, folder, *overlays, **{"epochs": EPOCHS, "save_interval": 2, **overrides})


def mlflow_runs(folder: Path) -> tuple[mlflow.MlflowClient, list]:
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlruns.db")
    return client, client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def tensorboard_of(folder: Path) -> accumulator.EventAccumulator:
    events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    return events.Reload()


@pytest.fixture(scope="module")
def killed_as(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A run that was stopped, killed and resumed; what MLflow said of it in between, and how many epochs it had."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.raises(SystemExit):
        train(cohort_dir, folder, "tracking", stop=Events.EPOCH_STARTED(once=2))
    client, (run,) = mlflow_runs(folder)
    before = run.info.status, len(client.get_metric_history(run.info.run_id, "loss"))
    with pytest.MonkeyPatch.context() as patch:  # in epoch 4, after a state of epoch 2, so that epoch 3 is repeated
        patch.setattr("scripts.training.run_log.RunLog._iteration_started", fail_in(4))
        with pytest.raises(RuntimeError):
            train(cohort_dir, folder, "tracking", resume=True)
    assert mlflow_runs(folder)[1][0].info.status == "FAILED"
    train(cohort_dir, folder, "tracking", resume=True)
    return folder, *before


def fail_in(epoch: int) -> Callable:
    """What the log does as an iteration starts, until that ``epoch``."""
    started = RunLog._iteration_started

    def fail(self: RunLog, trainer: Engine) -> None:
        if trainer.state.epoch == epoch:
            raise RuntimeError("out of luck")
        started(self, trainer)

    return fail


@pytest.fixture(scope="module")
def folder(killed_as: tuple[Path, str, int]) -> Path:
    return killed_as[0]


@pytest.fixture(scope="module")
def history(folder: Path) -> pandas.DataFrame:
    return pandas.read_csv(folder / "history.csv").set_index("epoch")


def test_mlflow_has_one_run_that_was_killed_and_is_finished_with_each_epoch_once(
    killed_as: tuple[Path, str, int], history: pandas.DataFrame
) -> None:
    folder, *before = killed_as
    assert before == ["KILLED", 1]
    client, (run,) = mlflow_runs(folder)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith(f"{folder.name}-")
    for name, column in history.items():
        logged = client.get_metric_history(run.info.run_id, name)
        assert sorted((metric.step, metric.value) for metric in logged) == list(column.items())


def test_mlflow_has_the_settings_and_at_the_end_the_report(folder: Path) -> None:
    client, (run,) = mlflow_runs(folder)
    settings = {"epochs": "4", "channels": "2", "learning_rate": "0.001", "max_epochs": "4"}
    assert settings.items() <= run.data.params.items()
    names = {"report.html", "history.csv", "run.json"}
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} == names
    for name in names:
        copy = folder / "mlruns" / run.info.run_id / "artifacts" / name
        assert copy.read_bytes() == (folder / name).read_bytes()


def test_tensorboard_has_each_epoch_once_and_pictures_of_each_validation(
    folder: Path, history: pandas.DataFrame
) -> None:
    events = tensorboard_of(folder / "tensorboard")
    assert set(events.Tags()["scalars"]) == set(history)
    for name, column in history.items():
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(column.tolist(), rel=1e-6)
    assert len(events.Tags()["images"]) == 3  # image, label and prediction
    for name in events.Tags()["images"]:
        pictures = [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images(name)]
        assert [(step, picture.format, picture.size) for step, picture in pictures] == [
            (epoch, "GIF", (32, 32)) for epoch in (1, 2, 3, 4)
        ]


def test_the_run_is_that_of_one_without_trackers(cohort_dir: Path, folder: Path, tmp_path: Path) -> None:
    train(cohort_dir, tmp_path, report=False)
    ours, theirs = (torch.load(path / "checkpoint_last.pt")["network"] for path in (folder, tmp_path))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert (folder / "history.csv").read_bytes() == (tmp_path / "history.csv").read_bytes()


def test_a_run_that_replaces_it_is_another_one_and_either_tracker_can_be_left_out(
    cohort_dir: Path, folder: Path, history: pandas.DataFrame
) -> None:
    options = {"epochs": 1, "overwrite": True, "report": False, "inner_fold": "none", "batch_size": 2}
    train(cohort_dir, folder, "tracking", mlflow=False, accumulation_steps=2, **options)
    assert len(mlflow_runs(folder)[1]) == 1
    events = tensorboard_of(folder / "tensorboard")
    assert [event.step for event in events.Scalars("loss")] == [1]
    assert events.Scalars("val_mean_dice") == []  # it has no validation
    assert not any(events.Images(name) for name in events.Tags()["images"])
    train(cohort_dir, folder, "tracking", tensorboard=False, **options)
    _, runs = mlflow_runs(folder)
    assert len(runs) == 2
    assert len({run.info.run_name for run in runs}) == 2
