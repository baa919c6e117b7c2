"""Trainings in processes of their own, which have MONAI imported: each starts in a second instead of five."""

import multiprocessing
import signal
import sys
from pathlib import Path

import torch

from scripts.common.errors import print_cause

PROCESSES = multiprocessing.get_context("forkserver")  # a child has MONAI imported, but no state of the tests
PROCESSES.set_forkserver_preload(
    ["monai.bundle", "monai.engines", "nibabel", "ignite.handlers", "scripts.simulation.cohort"]
)


def train(overrides: dict) -> None:
    """What ``python -m monai.bundle run training`` does; in a process of its own."""
    import monai.bundle

    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers, as in a process from a shell
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a script ignores it
    sys.excepthook = print_cause  # as where MONAI's command line runs
    sys.stderr = Path(overrides["output_dir"]).with_suffix(".log").open("a")
    try:
        monai.bundle.run("training", **overrides)
    except Exception:  # multiprocessing would print it without asking the hook, as Python does not
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None


def start(overrides: dict) -> multiprocessing.Process:
    """Begin a training with these overrides and ``config_file``; what it prints to stderr is in OUTPUT_DIR.log."""
    process = PROCESSES.Process(target=train, args=(overrides,))
    process.start()
    return process
