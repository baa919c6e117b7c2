"""Optuna continues a study whatever has changed since: this opens one, and refuses one that began otherwise."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from scripts.common.errors import InputError, describe
from scripts.search.space import check_count
from scripts.training.run_record import differences


def open_study(
    study_name: str, storage: str, output_dir: str, pruner: Any, settings: dict, heartbeat_interval: int, max_retry: int
) -> optuna.Study:
    """Make a study, or open one that exists.

    Args:
        storage: URL for SQLAlchemy (``sqlite:///``, ``postgresql+psycopg://``), or ``journal:///path``.
        output_dir: folder for the results, which is made.
        settings: what may not change while the study lives, in terms of JSON; its ``direction`` is Optuna's.
        heartbeat_interval: seconds between the signs of life of a worker, which is taken for dead after two of them.

    Raises:
        InputError: a wrong name or number, a storage that cannot be used, or a study that began with other settings.
    """
    if not re.fullmatch(r"\w[\w.-]*", str(study_name)):
        raise InputError(f"study_name {study_name!r}: names a folder; use letters, digits, '_', '-' and '.'")
    check_count(1, heartbeat_interval=heartbeat_interval)
    check_count(0, max_retry=max_retry)
    for attempt in range(5):
        try:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            opened = _open_storage(storage, heartbeat_interval, max_retry)
            study = optuna.create_study(
                storage=opened,
                study_name=study_name,
                direction=settings["direction"],
                pruner=pruner,
                load_if_exists=True,
            )
            break
        except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
            if attempt == 4 or not isinstance(error, IntegrityError | ProgrammingError):
                url = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", storage)
                raise InputError(f"storage {url}: cannot be used ({describe(error)})") from None
            time.sleep(1)  # another worker is making the tables
    ours, theirs = json.loads(json.dumps(settings)), study.user_attrs.get("settings")
    if theirs is None:
        study.set_user_attr("settings", ours)
    elif theirs != ours:
        different = "; ".join(f"{name} was {there} and is {here}" for name, there, here in differences(theirs, ours))
        raise InputError(f"study {study_name}: began with other settings ({different}); give another --study_name")
    return study


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the study's ``n_trials``: it ended, and not because its worker died."""
    failed = trial.state == TrialState.FAIL and "reason" in trial.user_attrs
    return failed or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def put_back(trial: optuna.Trial) -> None:
    """Let a running trial wait: the next worker takes it up under its number, with its parameters and values."""
    study_id = trial.storage.get_study_id_from_name(trial.study.study_name)
    trial_id = trial.storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
    trial.storage.set_trial_state_values(trial_id, TrialState.WAITING)


class _Storage(RDBStorage):
    """A database where a trial that was put back long ago does not look dead in the moment when it is taken up."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        if state == TrialState.RUNNING:
            self.record_heartbeat(trial_id)
        return super().set_trial_state_values(trial_id, state, values)


def _open_storage(url: str, heartbeat: int, max_retry: int) -> optuna.storages.BaseStorage:
    if url.startswith("journal://"):
        path = Path(url.removeprefix("journal://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    retry = RetryHeartbeatStaleTrialCallback(max_retry=max_retry)
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return _Storage(url, wait, heartbeat_interval=heartbeat, heartbeat_stale_trial_callback=retry)
