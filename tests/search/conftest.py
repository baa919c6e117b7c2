"""A cohort of a few voxels, and searches of the smallest networks in this process: what is tested is the search."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from scripts.common.errors import describe
from scripts.hpo import hpo
from scripts.search.trial import InnerFold
from scripts.simulation.cohort import simulate_cohort

SMALL = {
    "min_epochs": 1,
    "max_epochs": 3,
    "reduction_factor": 2,
    "n_trials": 5,
    "space#channels#low": 1,
    "space#channels#high": 3,
}


@pytest.fixture(scope="session")
def coarse_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 subjects on a grid of 16x16x16 voxels of 16 mm; the scans of outer fold 0 are missing."""
    path = Path(simulate_cohort(str(tmp_path_factory.mktemp("coarse") / "cohort"), n_subjects=12, spacing=8.0, seed=3))
    datalist = json.loads((path / "datalist.json").read_text())
    (path / "datalist.json").write_text(json.dumps({**datalist, "spacing": [16] * 3, "spatial_size": [16] * 3}))
    for scan in datalist["training"]:
        if scan["fold"] == 0:
            (path / scan["image"]).unlink()
            (path / scan["label"]).unlink()
    return path


@pytest.fixture(scope="session")
def run_search(coarse_dir: Path) -> Callable[..., optuna.Study]:
    """Search in this process; return the study."""

    def run(folder: Path, **flags: object) -> optuna.Study:
        hpo(**{"dataset_dir": str(coarse_dir), "output_dir": str(folder), **SMALL, **flags})
        return study_of(folder, flags.get("storage"))

    return run


@pytest.fixture(scope="session")
def study_in() -> Callable[..., optuna.Study]:
    """The study in a search's folder, or in the storage that is given."""
    return study_of


def study_of(folder: Path, url: str | None = None) -> optuna.Study:
    storage = url or f"sqlite:///{folder}/study.db"
    if storage.startswith("journal://"):
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage[10:]))
    return optuna.load_study(study_name="default", storage=storage)


@pytest.fixture(scope="session")
def refusal(run_search: Callable) -> Callable[..., str]:
    """The line with which a search ends."""

    def run(folder: Path, **flags: object) -> str:
        with pytest.raises((ValueError, RuntimeError)) as error:  # MONAI wraps what is raised while it reads
            run_search(folder, **flags)
        return describe(error.value)

    return run


@pytest.fixture(scope="session")
def searched(run_search: Callable, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, optuna.Study]:
    """A search with dropout that is never stopped: its folder and study."""
    folder = tmp_path_factory.mktemp("searched") / "hpo"
    return folder, run_search(folder, overrides={"dropout": 0.2})


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not drawn, which takes long: they are tested in ``test_report.py`` and where ``searched`` ends."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: None)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Send this process a signal while the n-th epoch from now on of an inner fold is trained."""
    advance = InnerFold.advance

    def stop(count: int, number: int) -> None:
        epochs = iter(range(1, count + 1))

        def advance_and_signal(self: InnerFold, epoch: int, metric: str) -> float:
            if next(epochs, None) == count:
                signal.raise_signal(number)
            return advance(self, epoch, metric)

        monkeypatch.setattr(InnerFold, "advance", advance_and_signal)

    return stop


@pytest.fixture
def start_search(coarse_dir: Path, start_command: Callable) -> Callable[..., subprocess.Popen]:
    """Start the search in a process of its own."""

    def start(folder: Path, log: Path, **flags: object) -> subprocess.Popen:
        return start_command("hpo.py", log, {"dataset_dir": coarse_dir, "output_dir": folder, **SMALL, **flags})

    return start
