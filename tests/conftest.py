"""A small simulated cohort and a network trained on it, made once for the whole session."""

import glob
import json
import os
import pickle
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import sqlalchemy
import torch
from durations import Recorder
from filelock import FileLock
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from scripts.common.errors import describe
from scripts.simulation.cohort import simulate_cohort

ROOT = Path(__file__).resolve().parents[1]
TRAIN, EVALUATE, INFERENCE = (str(ROOT / "configs" / f"{name}.json") for name in ("train", "evaluate", "inference"))
OVERLAYS = ROOT / "configs" / "overlays"
MENUS = {  # the names of their entries; what begins with _ is a piece that entries quote
    path.stem: [name for name in json.loads(path.read_text()) if name[0] != "_"]
    for path in sorted((ROOT / "configs" / "menus").glob("*.json"))
}
REAL = ROOT.parent / "shared" / "real"  # public scans, masks and atlases, which no checkout has
NOT_OF_TRAIN = {"benchmark_gpu", "hpo_augmentation", "hpo_baseline", "labels", "techniques", "usual"}  # other commands
ALL = 'pytest tests -m "slow or not slow"'
LEFT_OUT = pytest.StashKey[int]()
# Tests run side by side, and what they compare to the last bit must not depend on the machine's cores.
os.environ["OMP_NUM_THREADS"] = "1"  # of commands
torch.set_num_threads(1)
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # s that a loader which failed waits for each worker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations", action="store_true", help="write what the tests take into tests/durations.json"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("record_durations"):
        config.pluginmanager.register(Recorder())
    if any("::" in argument for argument in config.args) and config.option.markexpr == "not slow":
        config.option.markexpr = ""  # a test that is asked for by its name runs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    session.config.collected = [*items]  # those that are left out, too


def pytest_deselected(items: list[pytest.Item]) -> None:
    config = items[0].config
    left = sum("slow" in item.keywords for item in items)
    getattr(config, "workeroutput", {})["left_out"] = config.stash[LEFT_OUT] = left


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Take from a process of pytest-xdist what it left out; each has left out the same."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if left := terminalreporter.config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left} slow tests were left out; all tests: {ALL}")


AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path: Path, data: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    """Save a 3D NIfTI image of 24x30x20 voxels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.arange(24 * 30 * 20, dtype=np.float32).reshape(24, 30, 20) if data is None else data
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def lesion() -> np.ndarray:
    """A mask of that size."""
    mask = np.zeros((24, 30, 20), np.uint8)
    mask[5:9, 5:9, 5:9] = 1
    return mask


def bundle(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run ``python -m monai.bundle run`` as a user does; numbers and lists as on a shell's command line."""
    command = [sys.executable, "-m", "monai.bundle", "run", *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd or ROOT, env=environment, capture_output=True, text=True, timeout=900)


def command(cwd: Path, name: str, *arguments: object) -> None:
    """Run a command of scripts/ as a user does in the folder ``cwd``, but in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        patch.setattr(sys, "excepthook", sys.excepthook)
        patch.setattr(sys, "path", [*sys.path])
        runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable], object]:
    """Give a folder of a name to a function, and return what it returns, called by one of pytest-xdist's processes."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def call(name: str, make: Callable[[Path], object]) -> object:
        made = root / f"{name}.pickle"
        with FileLock(root / f"{name}.lock"):
            if not made.exists():
                (root / name).mkdir()
                made.write_bytes(pickle.dumps(make(root / name)))
        return pickle.loads(made.read_bytes())

    return call


@pytest.fixture(scope="session")
def cohort_dir(once: Callable) -> Path:
    """24 subjects on a grid of 32x32x32 voxels of 8 mm."""
    simulate = partial(simulate_cohort, n_subjects=24, spacing=8.0, seed=3)
    return once("cohort", lambda folder: Path(simulate(str(folder / "small"))))


@pytest.fixture(scope="session")
def contrast_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9 subjects in three contrasts on that grid; the first has no FLAIR."""
    folder = str(tmp_path_factory.mktemp("cohort") / "contrasts")
    root = Path(simulate_cohort(folder, n_subjects=9, spacing=8.0, seed=3, contrasts=["T1w", "FLAIR"]))
    content = json.loads((root / "datalist.json").read_text())
    del content["training"][0]["contrasts"]["FLAIR"]
    (root / "datalist.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def trained(cohort_dir: Path, once: Callable) -> dict:
    """A run of the training command from another directory: its folders and what it printed."""

    def train(root: Path) -> dict:
        overrides = {
            "--dataset_dir": cohort_dir,
            "--output_dir": root / "eval",
            "--ckpt_dir": root / "models",
            "--channels": 8,
            "--epochs": 20,
            "--learning_rate": 0.01,
        }
        arguments = [str(part) for pair in overrides.items() for part in pair]
        result = bundle("training", "--config_file", TRAIN, *arguments, cwd=root)
        assert result.returncode == 0, result.stderr[-2000:]
        scans = json.loads((cohort_dir / "datalist.json").read_text())["training"]
        return {"root": root, "arguments": arguments, "scans": scans, "stdout": result.stdout, "stderr": result.stderr}

    return once("trained", train)


@pytest.fixture
def start_command() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command of scripts/ in a process of its own, in its log's folder; none outlives the test."""
    started = []

    def start(name: str, log: Path, flags: dict) -> subprocess.Popen:
        arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # bit-identical only then
        command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
        with log.open("a") as out:
            started.append(subprocess.Popen(command, cwd=log.parent, env=environment, stdout=out, stderr=out))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def restoring(trainer: Engine, log: Callable[[Engine], None], restored: int) -> None:
    """Let a trainer of two iterations an epoch do what ours do first: restore a state, and ``log`` each epoch.

    ``log`` is called for each epoch, also for those that are ``restored``.
    """

    @trainer.on(Events.STARTED)
    def restore(trainer: Engine) -> None:
        for trainer.state.epoch in range(1, restored + 1):
            log(trainer)
        trainer.state.iteration = 2 * restored

    trainer.add_event_handler(Events.EPOCH_COMPLETED, log)


def recipe(*files: str, **overrides: object) -> ConfigParser:
    """train.json with more configs, of which overlays may be named without folder and ending, and with overrides."""
    paths = [TRAIN, *(file if "/" in file else str(OVERLAYS / f"{file}.json") for file in files)]
    parser = ConfigParser()
    parser.read_config(paths)
    parser.update({key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()})
    return parser


def checked(*files: str, **overrides: object) -> ConfigParser:
    """``recipe`` after the check that a run begins with."""
    parser = recipe(*files, **overrides)
    parser.parse()
    parser.get_parsed_content("config")
    return parser


@contextmanager
def refused(match: str) -> Iterator[None]:
    """As ``pytest.raises``, for the line that a user sees, whatever MONAI and Ignite have wrapped around the cause."""
    with pytest.raises(Exception) as error:  # noqa: PT011
        yield
    assert re.search(match, describe(error.value)), describe(error.value)


def train_here(cohort_dir: Path, folder: Path, *files: str, **options: object) -> ConfigParser:
    """A training in this process, by ``recipe``.

    ``stop`` is an event of its trainer at which it is told to stop by SIGTERM; ``watch`` has handlers of what an
    iteration leaves, by "train#trainer" and "validate#evaluator".
    """
    torch.set_num_threads(1)
    watch, stop = options.pop("watch", {}), options.pop("stop", None)
    values = {"channels": 2, "cache": "none", "dataset_dir": cohort_dir, "output_dir": folder}
    parser = recipe(*files, **{**values, **options})
    set_determinism(seed=0)  # as "run" does before it builds the network, which may be built here
    if stop is not None:
        trainer = parser.get_parsed_content("train#trainer")
        trainer.add_event_handler(stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
    for engine, handler in watch.items():
        parser.get_parsed_content(engine).add_event_handler(Events.ITERATION_COMPLETED, handler)
    try:
        parser.get_parsed_content("run")
    finally:
        parser.get_parsed_content("run_folder").release()
    return parser


@contextmanager
def small_disk_at(disk: Path, size: str) -> Iterator[Path]:
    """A disk of ``size``, such as 40k, mounted at ``disk``."""
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root, with the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, run by an ordinary user on a free port."""
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        pytest.skip("no PostgreSQL server on this machine: initdb is not found")
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="meshnet-postgres-", dir="/tmp"))
    if user:
        shutil.chown(folder, "nobody", "nogroup")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the real folder: a link elsewhere may lead to a wrapper that switches users
    binaries = Path(found).resolve().parent
    log = (folder.parent / f"{folder.name}.log").open("w")
    make = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "meshnet", "-A", "trust", "--no-sync"]
    subprocess.run(make, check=True, stdout=log, stderr=log, cwd="/", **user)
    serve = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
    server = subprocess.Popen([*serve, "-c", "listen_addresses=127.0.0.1"], stdout=log, stderr=log, cwd="/", **user)
    url = f"postgresql+psycopg://meshnet@127.0.0.1:{port}/postgres"
    engine = sqlalchemy.create_engine(url)
    for _ in range(300):
        try:
            engine.connect().close()
            break
        except sqlalchemy.exc.OperationalError:
            assert server.poll() is None, Path(log.name).read_text()
            time.sleep(0.1)
    engine.dispose()
    yield url
    server.send_signal(signal.SIGINT)
    server.wait(30)
    shutil.rmtree(folder)
    Path(log.name).unlink()


@pytest.fixture
def folder_in_latin_1(tmp_path: Path) -> Path:
    """A folder whose name is not UTF-8, as of a disk that was written elsewhere."""
    name = os.fsencode(tmp_path) + b"/M\xfcller"
    try:
        os.mkdir(name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    return Path(os.fsdecode(name))
