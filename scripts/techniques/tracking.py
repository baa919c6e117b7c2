"""Let MONAI's MLflow handler continue the run of a training that is resumed, and tell how a training has ended."""

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from scripts.common.overrides import is_computed


class ResumedMLFlowHandler(MLFlowHandler):
    """MONAI's handler, but a resumed training is the same run in MLflow, which has each epoch once.

    After a signal MLflow calls the run KILLED, after an error FAILED. Attach it between the log and the state, which
    raises an exception again. ``run_name`` must be this run's alone, and the same when it is resumed.
    """

    _logged = 0  # the last epoch that MLflow has

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._ended)

    def start(self, engine: Engine) -> None:
        """Continue the run of this name, or begin it."""
        self._set_experiment()
        runs = self.client.search_runs([self.experiment.experiment_id], f'attributes.run_name = "{self.run_name}"')
        if runs:
            self.cur_run = runs[0]
            self.client.update_run(self.cur_run.info.run_id, status="RUNNING")
            self._delete_exist_param_in_dict(self.experiment_param)
            history = self.client.get_metric_history(self.cur_run.info.run_id, "loss")
            self._logged = max((metric.step for metric in history), default=0)
        super().start(engine)

    def epoch_completed(self, engine: Engine) -> None:
        """Log an epoch that MLflow does not have yet."""
        if engine.state.epoch > self._logged:
            super().epoch_completed(engine)

    def _ended(self, engine: Engine, error: BaseException) -> None:
        self.run_finish_status = "FAILED" if isinstance(error, Exception) else "KILLED"
        self.close()


def plain_settings(config: dict) -> dict:
    """The settings of a config that are numbers or words, without those that are computed."""
    plain = {key: value for key, value in config.items() if isinstance(value, bool | int | float | str)}
    return {key: value for key, value in plain.items() if not is_computed(value)}
