"""MONAI's TensorBoard and MLflow handlers begin a second run on resume and see no epoch's loss: here they do not."""

import json
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler, TensorBoardImageHandler, TensorBoardStatsHandler
from scipy import ndimage

from scripts.common.errors import InputError
from scripts.training.run_folder import RunFolder
from scripts.training.training_state import when_restored


class Tracking:
    """Shows a run in TensorBoard and MLflow: settings, each epoch's row of ``history.csv``, pictures, the report.

    A resumed run is the same run there. TensorBoard drops what is repeated; MLflow's run belongs to the trainer's state
    dictionary, and gets the epochs that it lacks. After a signal MLflow calls it KILLED, after an error FAILED.

    Args:
        evaluator: the validation engine; pictures are of its last scan.
        run_folder: what the settings are, and the output folder, where ``tensorboard/`` is.
        run_name: of MLflow's run, which gets a suffix, as runs of one name would be continued by each other.
        scalars: makes a ``TensorBoardStatsHandler`` of a ``summary_writer``; None for no TensorBoard.
        pictures: makes a ``TensorBoardImageHandler`` of a ``summary_writer``.
        mlflow: makes an ``MLFlowHandler`` of ``run_name`` and ``experiment_param``; None for no MLflow.

    Raises:
        InputError: a package is not installed.
    """

    def __init__(
        self,
        evaluator: Engine,
        run_folder: RunFolder,
        run_name: str,
        scalars: Callable[..., TensorBoardStatsHandler] | None = None,
        pictures: Callable[..., TensorBoardImageHandler] | None = None,
        mlflow: Callable[..., MLFlowHandler] | None = None,
    ) -> None:
        for key, wanted, package in (("tensorboard", scalars, "tensorboard"), ("mlflow", mlflow, "mlflow-skinny")):
            if wanted and find_spec(key) is None:
                raise InputError(f"{key}: is not installed; pip install {package}, or do without by --{key} false")
        self.evaluator, self.run_folder, self.run_name = evaluator, run_folder, run_name
        self.make_scalars, self.make_pictures, self.make_mlflow = scalars, pictures, mlflow
        self._handlers, self._writers, self._mlflow = [], [], None

    @idist.one_rank_only()
    def attach(self, engine: Engine) -> None:
        """Register with the trainer, behind the log and the state, which hook themselves in when it starts."""
        engine.state.mlflow_run = ""
        engine.state_dict_user_keys.append("mlflow_run")
        when_restored(engine, self._started)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._ended)  # but before the state, which raises it again

    def _started(self, trainer: Engine) -> None:
        if self.make_scalars:
            self._start_tensorboard(trainer.state.run_log["rows"])
        if self.make_mlflow:
            self._start_mlflow(trainer)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        trainer.add_event_handler(Events.COMPLETED, self._completed)

    def _start_tensorboard(self, rows: list[dict]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the package is optional

        folder, done = self.run_folder.record.parent / "tensorboard", len(rows)
        # The last row is written again: if the run was stopped between its state and this handler, it is not there.
        steps = {folder: done, folder / "pictures": done + 1}
        self._writers = scalars, pictures = [SummaryWriter(path, purge_step=step) for path, step in steps.items()]
        if not rows:
            lines = json.dumps(self.run_folder.facts, indent=4).splitlines()
            scalars.add_text("run", "".join(f"    {line}\n" for line in lines), 0)  # Markdown for code
        self._handlers.append(self.make_scalars(summary_writer=scalars))
        for row in rows[-1:]:
            self._handlers[0].epoch_completed(engine_of(row))
        self.make_pictures(summary_writer=pictures).attach(self.evaluator)

    def _start_mlflow(self, trainer: Engine) -> None:
        run, config = trainer.state.mlflow_run, self.run_folder.facts["config"]
        plain = {key: value for key, value in config.items() if isinstance(value, bool | int | float | str)}
        settings = {key: value for key, value in plain.items() if str(value)[:1] not in "$@%"}
        name = f"{self.run_name}-{uuid.uuid4().hex[:8]}"  # no random number of the training's
        self._mlflow = handler = self.make_mlflow(run_name=name, experiment_param=None if run else settings)
        if run:
            handler.cur_run = handler.client.get_run(run)
            handler.client.update_run(run, status="RUNNING")
        handler.start(trainer)
        trainer.state.mlflow_run = run = handler.cur_run.info.run_id
        logged = max((metric.step for metric in handler.client.get_metric_history(run, "loss")), default=0)
        for row in trainer.state.run_log["rows"][logged:]:
            handler.epoch_completed(engine_of(row))
        self._handlers.append(handler)

    def _epoch_completed(self, trainer: Engine) -> None:
        for handler in self._handlers:
            handler.epoch_completed(engine_of(trainer.state.run_log["rows"][-1]))

    def _completed(self) -> None:
        if self._mlflow:
            self._mlflow.complete()
        self._close()

    def _ended(self, trainer: Engine, error: BaseException) -> None:
        if self._mlflow:
            self._mlflow.run_finish_status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self._close()

    def _close(self) -> None:
        if self._mlflow:
            self._mlflow.close()
        for writer in self._writers:
            writer.close()


def engine_of(row: dict) -> SimpleNamespace:
    """What MONAI's handlers read of an engine whose metrics are a row of the history."""
    metrics = {name: value for name, value in row.items() if name != "epoch"}
    return SimpleNamespace(state=SimpleNamespace(epoch=row["epoch"], metrics=metrics))


def outlined_slice(items: list[dict]) -> list[np.ndarray]:
    """The first item's slice of most lesion across the last axis, as RGB (3, H, W) from 0 to 1.

    ``image`` is (1, D, H, W), ``label`` and ``pred`` are one-hot (2, D, H, W): outlined in green and, over it, in red.
    """
    image, true, pred = (items[0][key][-1].cpu().numpy() for key in ("image", "label", "pred"))
    areas = (true if true.any() else pred).sum((0, 1))
    height = areas.argmax() if areas.any() else len(areas) // 2
    image, true, pred = (np.rot90(volume[..., height]) for volume in (image, true > 0, pred > 0))
    picture = np.stack([np.clip(image / max(image.max(), 1e-6), 0, 1)] * 3)
    for mask, colour in ((true, (0, 1, 0)), (pred, (1, 0, 0))):
        picture[:, mask & ~ndimage.binary_erosion(mask)] = np.array(colour)[:, None]
    return [picture]
