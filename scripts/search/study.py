"""Open a study, refuse one that began with other settings, and keep its trials when a worker stops."""

import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from scripts.common.errors import InputError, describe, hide_passwords
from scripts.common.json_file import as_json
from scripts.training.run_record import differences


def open_study(
    study_name: str, storage: str, output_dir: str, pruner: Any, settings: dict, heartbeat_interval: int, max_retry: int
) -> optuna.Study:
    """Make a study in an SQLAlchemy URL or ``journal:///path``, or open it; ``output_dir`` is made.

    ``settings`` (in terms of JSON) may not change while the study lives. A worker shows each ``heartbeat_interval``
    seconds that it lives, and is taken for dead after two. An ``InputError`` says what is wrong with the name, the
    storage or the settings.
    """
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if not re.fullmatch(r"\w[\w.-]*", str(study_name)):
        raise InputError(f"study_name {study_name!r}: names a folder; use letters, digits, '_', '-' and '.'")
    for last in (False, False, False, False, True):
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            same = {"storage": _open_storage(storage, heartbeat_interval, max_retry), "study_name": study_name}
            study = optuna.create_study(**same, pruner=pruner, direction=settings["direction"], load_if_exists=True)
            break
        except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
            if last or not isinstance(error, IntegrityError | ProgrammingError):
                raise InputError(hide_passwords(f"storage {storage}: cannot be used ({describe(error)})")) from error
            time.sleep(1)  # another worker is making the tables
    settings = as_json(settings)
    found = differences(study.user_attrs.get("settings", settings), settings)
    if different := "; ".join(f"{name} was {there} and is {here}" for name, there, here in found):
        raise InputError(f"study {study_name}: began with other settings ({different}); give another --study_name")
    study.set_user_attr("settings", settings)
    return study


def _open_storage(url: str, heartbeat: int, max_retry: int) -> optuna.storages.BaseStorage:
    if url.startswith("journal://"):
        path = Path(url.removeprefix("journal://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=max_retry)
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return _Storage(url, wait, heartbeat_interval=heartbeat, heartbeat_stale_trial_callback=retry)


class _Storage(optuna.storages.RDBStorage):
    """A database where a trial that was put back long ago does not look dead in the moment when it is taken up."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial is one of the study's ``n_trials``: it ended, and not because its worker died."""
    return trial.state.is_finished() and (trial.state != TrialState.FAIL or "reason" in trial.user_attrs)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Add what is logged or printed to stderr to the file at ``path`` instead."""
    root = logging.getLogger()
    with path.open("a") as log, redirect_stderr(log), ExitStack() as stack:
        stack.callback(setattr, root, "handlers", root.handlers)
        root.handlers = [logging.StreamHandler(log)]
        yield


def put_back(trial: optuna.Trial) -> None:
    """Let a running trial wait: the next worker takes it up under its number, with its parameters and values."""
    study_id = trial.storage.get_study_id_from_name(trial.study.study_name)
    trial_id = trial.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
    trial.storage.set_trial_state_values(trial_id, TrialState.WAITING)
