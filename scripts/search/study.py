"""Optuna knows no bundle: here a trial is train.json with an override file, its inner folds advanced together."""

import json
import logging
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any

import monai
import numpy as np
import optuna
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.search.report import report

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRAIN = str(CONFIGS / "train.json")
HISTORY = ("epoch", "loss", "lr", "val_mean_dice", "val_avd", "val_mcc")  # columns of a run's history.csv
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The search was told to stop; the trial will be continued."""


class Search:
    """A study whose trials train ``configs/train.json`` with overrides; docs/search.md says what is counted and when.

    Args:
        study_name: name of the study in the storage; a study that exists is continued.
        storage: URL for SQLAlchemy (``sqlite:///``, ``postgresql+psycopg://``), or ``journal:///path``.
        output_dir: folder for the trials and the results.
        space: for each key of train.json a function of the trial and the key that suggests its value.
        overrides: what all trials have in common.
        make_sampler: the sampler's constructor; a seed that differs by trial is added unless it has one.
        pruner: an Optuna pruner, asked after each epoch.
        direction: "maximize" or "minimize".
        metric: name of a validation metric of train.json.
        fold: outer fold, which is not read.
        inner_folds: the inner folds, whose mean metric is the trial's value.
        n_trials: how many trials the study shall have in the end, over all workers.
        min_epochs: epochs of the pruner's first rung.
        max_epochs: epochs of a trial that is not pruned.
        seed: of the sampler; trainings have that of train.json.
        heartbeat_interval: seconds between the signs of life of a worker, which is taken for dead after two of them.
        max_retry: how often the trial of a dead worker is tried again.
        max_same_failures: trials in a row that fail alike and stop the search.

    Raises:
        InputError: an unknown key or value in space or overrides, a storage that cannot be used, or another study.
    """

    def __init__(
        self,
        study_name: str,
        storage: str,
        output_dir: str,
        space: dict[str, partial],
        overrides: dict,
        make_sampler: partial,
        pruner: optuna.pruners.BasePruner,
        direction: str,
        metric: str,
        fold: int,
        inner_folds: list[int],
        n_trials: int,
        min_epochs: int,
        max_epochs: int,
        seed: int,
        heartbeat_interval: int,
        max_retry: int,
        max_same_failures: int,
    ) -> None:
        self.output_dir, self.space, self.pruner, self.metric = Path(output_dir).resolve(), space, pruner, metric
        self.make_sampler, self.seed, self.n_trials, self.max_epochs = make_sampler, seed, n_trials, max_epochs
        self.inner_folds, self.max_same_failures = inner_folds, max_same_failures
        self.overrides = {**overrides, "fold": fold, "epochs": max_epochs, "val_interval": 1}
        if not min_epochs <= max_epochs:
            raise InputError(f"min_epochs {min_epochs}: more than max_epochs, which is {max_epochs}")
        for end in ("low", 0), ("high", -1):  # so that no trial is the first to find out
            _check_overrides({**self.overrides, **{name: _end_of(name, s, *end) for name, s in space.items()}})
        settings = {
            "space": {name: [suggest.func.__name__, suggest.keywords] for name, suggest in space.items()},
            "overrides": {key: value for key, value in self.overrides.items() if key != "dataset_dir"},
            "inner_folds": inner_folds,
            "metric": metric,
        }
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.study = _open_study(study_name, storage, heartbeat_interval, max_retry, direction, settings)
        self.study.sampler = self._sampler(0)
        self._signal: int | None = None
        self._failures: list[str] = []  # the last failures' cause, once for each that was alike
        self._heartbeat = not storage.startswith("journal://")  # else nobody can tell a dead worker from a slow one

    def run(self) -> None:
        """Run trials until the study has ``n_trials``; then write and print the results.

        Raises:
            InputError: trials keep failing for the same reason, or none has succeeded.
            SystemExit: 128 plus the signal's number, after SIGTERM or SIGINT.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # failures are said in one line each
        logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            with tqdm(total=self.n_trials, desc="Search", unit="trial") as self.bar:
                while self._signal is None and len(self._failures) < self.max_same_failures and self._room():
                    self.study.sampler = self._sampler(len(self.study.get_trials(deepcopy=False)))
                    self.study.pruner = self.pruner
                    self.study.optimize(self._objective, n_trials=1, catch=Exception, gc_after_trial=True)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        report(self.study, self.output_dir, self.metric)
        if len(self._failures) >= self.max_same_failures:
            raise InputError(f"{len(self._failures)} trials in a row failed alike, the last one so: {self._reason}")
        if self._signal is not None:
            print("Stopped; the same command continues the study", file=sys.stderr)
            raise SystemExit(128 + self._signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once
        self.bar.write(f"{signal.Signals(number).name}: stopping after this epoch", file=sys.stderr)

    def _room(self) -> bool:
        """Whether there is a trial to run; waits while others run the last ones, to take over if they die."""
        while self._signal is None:
            optuna.storages.fail_stale_trials(self.study)
            trials = self.study.get_trials(deepcopy=False)
            states = [trial.state for trial in trials]
            ended = sum(map(counts, trials))
            self._show(ended)
            exhausted = getattr(self.study.sampler, "is_exhausted", lambda study: False)
            if ended >= self.n_trials or exhausted(self.study):
                return False
            if not self._heartbeat or ended + states.count(TrialState.RUNNING) < self.n_trials:
                return True
            time.sleep(1)
        return False

    def _show(self, ended: int | None = None, **more: Any) -> None:
        if ended is not None:
            self.bar.n = ended
        done = [t.value for t in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        best = max if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else min
        self.bar.set_postfix({"best": f"{best(done):.3f}" if done else "-", **more})

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler whose draws depend on the seed, the trial's number and the study's trials, on nothing else."""
        if "seed" in getattr(self.make_sampler, "keywords", {}):  # a class, where hpo.json gives no arguments
            return self.make_sampler()
        return self.make_sampler(seed=int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0]))

    def _objective(self, trial: optuna.Trial) -> float:
        self.study.sampler = self._sampler(trial.number)  # another worker may have taken the number expected
        values = {name: suggest(trial, name) for name, suggest in self.space.items()}
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        begun = RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)
        begun = trial.user_attrs.get("continues", trial.number if begun is None else begun)
        folder = self.output_dir / "trials" / f"{begun:04d}"
        trial.set_user_attr("overrides", str(folder / "overrides.json"))
        try:
            with replace_file(folder / "overrides.json") as file:
                json.dump({**self.overrides, **values}, file, indent=4)
            with _log_to(folder / "log.txt"):
                value = self._train(trial, folder)
            self._failures = []
            return value
        except optuna.TrialPruned:
            raise
        except Interrupted:
            trial.set_user_attr("reason", "interrupted")
            self.study.enqueue_trial(values, user_attrs={"continues": begun})
            folder = None  # its states are needed
            raise
        except (Exception, InputError) as error:
            reason = _cause(error)
            trial.set_user_attr("reason", reason)
            self._note_failure(reason)
            raise RuntimeError(reason) from error
        finally:
            for state in folder.glob("inner_fold-*/*.pt") if folder else ():
                state.unlink()

    def _train(self, trial: optuna.Trial, folder: Path) -> float:
        folds = [_InnerFold(folder, inner_fold, self.metric) for inner_fold in self.inner_folds]
        try:
            for epoch in range(1, self.max_epochs + 1):
                values = [self._advance(fold, epoch) for fold in folds]
                value = fmean(values)
                if not np.isfinite(value):
                    raise ValueError(f"epoch {epoch}: {self.metric} is {value}")
                trial.report(value, step=epoch)
                trial.set_user_attr("inner_folds", values)
                self._show(trial=trial.number, epoch=f"{epoch}/{self.max_epochs}", value=f"{value:.3f}")
                if epoch < self.max_epochs and trial.should_prune():  # a rung at the very end would only hide values
                    raise optuna.TrialPruned
            return value
        finally:
            for fold in folds:
                fold.close()

    def _advance(self, fold: "_InnerFold", epoch: int) -> float:
        value = fold.advance(epoch)
        if self._signal is not None:
            raise Interrupted
        return value

    def _note_failure(self, reason: str) -> None:
        self.bar.write(f"a trial failed: {reason}", file=sys.stderr)
        kind = re.sub(r"/\S+|[-+\d.]+(e[-+]?\d+)?", "", reason)  # the cause without its files and numbers
        self._reason = reason
        self._failures = [*self._failures, kind] if self._failures[-1:] == [kind] else [kind]


class _InnerFold:
    """The training of one inner fold by train.json, halted after each epoch."""

    def __init__(self, folder: Path, inner_fold: int, metric: str) -> None:
        own = str(folder / f"inner_fold-{inner_fold}")
        self.workflow = ConfigWorkflow(
            [TRAIN, str(folder / "overrides.json")],
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            **{"inner_fold": inner_fold, "output_dir": own, "ckpt_dir": own, "resume": True, "report": False},
        )
        self.workflow.initialize()
        monai.utils.set_determinism(self.workflow.parser.get_parsed_content("seed"))  # as train.json does before it
        self.trainer = self.workflow.parser.get_parsed_content("train#trainer")
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._halt)
        self.metric, self.begun, self.halted = metric, False, False

    def advance(self, epoch: int) -> float:
        """Train up to ``epoch``, unless a resumed state is there already; return the metric at that epoch."""
        state = self.trainer.state
        while len(state.run_log["rows"]) < epoch:
            self.halted = False
            if self.begun:
                monai.engines.Workflow.run(self.trainer)  # Trainer.run would make a new gradient scaler
            else:
                self.begun = True
                self.workflow.run()
        return state.run_log["rows"][epoch - 1][HISTORY.index(self.metric)]

    def _halt(self, trainer: Engine) -> None:
        self.halted = trainer.state.epoch < trainer.state.max_epochs
        if self.halted:
            trainer.interrupt()

    def close(self) -> None:
        """End a training that is halted."""
        if self.halted:
            self.trainer.terminate(skip_completed=True)
            monai.engines.Workflow.run(self.trainer)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the study's ``n_trials``: it ended, and will not be tried or continued again."""
    failed = trial.state == TrialState.FAIL and trial.user_attrs.get("reason", "interrupted") != "interrupted"
    return failed or trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _end_of(name: str, suggest: partial, end: str, index: int) -> Any:
    try:
        return suggest.keywords["choices"][index] if "choices" in suggest.keywords else suggest.keywords[end]
    except (AttributeError, KeyError, IndexError) as error:
        raise InputError(
            f"space#{name}: expected a function with low and high, or choices; see docs/search.md"
        ) from error


def _check_overrides(overrides: dict) -> None:
    recipe = ConfigParser()
    recipe.read_config(TRAIN)
    recipe.update(overrides)
    recipe.parse()
    recipe.get_parsed_content("config")


def _open_study(name: str, url: str, heartbeat: int, max_retry: int, direction: str, settings: dict) -> optuna.Study:
    for attempt in range(5):
        try:
            study = optuna.create_study(
                storage=_open_storage(url, heartbeat, max_retry),
                study_name=name,
                direction=direction,
                load_if_exists=True,
            )
            break
        except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
            if attempt == 4 or not isinstance(error, (IntegrityError, ProgrammingError)):
                raise InputError(f"storage {_without_password(url)}: cannot be used ({_cause(error)})") from error
            time.sleep(1)  # another worker is making the tables
    settings = json.loads(json.dumps({"direction": direction, **settings}))
    theirs = study.user_attrs.get("settings")
    if theirs is None:
        study.set_user_attr("settings", settings)
    elif theirs != settings:
        different = "; ".join(f"{key} was {theirs.get(key)}" for key in settings if theirs.get(key) != settings[key])
        raise InputError(f"study {name}: began with other settings ({different}); give another --study_name")
    return study


def _open_storage(url: str, heartbeat: int, max_retry: int) -> optuna.storages.BaseStorage:
    if url.startswith("journal://"):
        path = Path(url.removeprefix("journal://"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    retry = RetryHeartbeatStaleTrialCallback(max_retry=max_retry)
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    return RDBStorage(url, wait, heartbeat_interval=heartbeat, heartbeat_stale_trial_callback=retry)


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _cause(error: BaseException) -> str:
    """The first cause in one line: MONAI and SQLAlchemy bury it."""
    while error.__cause__ is not None or (error.__context__ is not None and not error.__suppress_context__):
        error = error.__cause__ or error.__context__
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{kind}{' '.join(str(error).split())[:300]}"


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send what a training logs and shows to a file of its own."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    with path.open("a") as file, redirect_stderr(file):
        root.handlers = [logging.StreamHandler(file)]
        try:
            yield
        finally:
            root.handlers = handlers


def hpo(overlay: str | None = None, **overrides: Any) -> None:
    """Search hyperparameters by ``configs/hpo.json``.

    Args:
        overlay: a config file with what differs from it.
        overrides: any key of it, as a flag.
    """
    configs = [str(CONFIGS / "hpo.json"), *([overlay] if overlay else [])]
    monai.bundle.run(config_file=configs, meta_file=str(CONFIGS / "metadata.json"), **overrides)
