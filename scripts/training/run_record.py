"""What a run was: command, config, versions, hardware, and what differs from the shipped recipe or another run."""

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ignite
import monai
import numpy as np
import torch

from scripts.common.errors import hide_passwords

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "train.json"
# What may differ between a run and its continuation: where things are, how they are loaded, what is shown. The scans
# themselves, and the weights that are started from, are compared by the cohort's fingerprint.
PLACES = ("bundle_root", "default_cohort", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "model_path", "device")
LOADING = ("init_weights", "teacher", "cache", "cache_dir", "cache_gigabytes", "num_workers", "save_interval")
SHOWN = ("report", "resume", "overwrite", "debug", "imports", "initialize", "run", "training")
TRACKED = ("tensorboard", "mlflow", "tracking_uri", "experiment_name", "run_name")
MAY_DIFFER = {*PLACES, *LOADING, *SHOWN, *TRACKED}


def facts_of(config: dict, cohort: str) -> dict:
    """What is kept of a run with this config (macros resolved) on scans with this fingerprint, in terms of JSON."""
    facts = {
        "cohort": cohort,
        "overrides": {key: value for key, value in config.items() if key[0] != "_" and recipe().get(key) != value},
        "config": {key: value for key, value in config.items() if key[0] != "_"},
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: str(module.__version__) for module in (monai, torch, ignite, np)},
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        },
        "hardware": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "git_revision": git_revision(),
    }
    return json.loads(
        hide_passwords(json.dumps(facts, default=str))
    )  # what a state may hold, whatever objects a program passed


@functools.cache
def recipe() -> dict:
    """The shipped recipe, its macros resolved, its menus' first entries in their places."""
    recipe = monai.bundle.ConfigParser()
    recipe.read_config(str(RECIPE))
    return recipe.get_parsed_content("config")


def differences(theirs: dict, ours: dict, above: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Name, value there and value here of what differs, as deep as both are blocks; ``MAY_DIFFER`` is left out.

    Of blocks that make different things it tells what they make.
    """
    for key in {**theirs, **ours}:
        there = theirs.get(key)
        here = ours.get(key)
        if there == here or key == "_desc_" or (not above and (key[0] == "_" or key in MAY_DIFFER)):
            continue
        if not (isinstance(there, dict) and isinstance(here, dict)):
            yield f"{above}{key}", there, here
        elif there.get("_target_") != here.get("_target_"):
            yield f"{above}{key}#_target_", there.get("_target_"), here.get("_target_")
        else:
            yield from differences(there, here, f"{above}{key}#")


def command() -> str:
    """The command line that this process was started with, as a person types it, without passwords."""
    module = sys.argv[0].endswith("__main__.py")
    words = ["python", *(["-m", "monai.bundle"] if module else sys.argv[:1]), *sys.argv[1:]]
    return shlex.join(map(hide_passwords, words))


def git_revision() -> str | None:
    """The commit that is checked out here, "-dirty" if files differ from it; None without git."""
    describe = ["git", "-C", str(RECIPE.parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or not a repository
        return None
