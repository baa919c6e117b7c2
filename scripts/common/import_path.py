"""Run by a config's ``initialize``, by its path: from then on ``scripts`` is this bundle's, in any directory."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

if sys.path[0] != str(ROOT):
    sys.path.insert(0, str(ROOT))  # before the current directory, where Python looks first
found = Path(next(iter(importlib.import_module("scripts").__path__))).resolve()
if found != ROOT / "scripts":
    raise ImportError(
        f"{found}: this process has imported another package called scripts, which is in the way of {ROOT}/scripts; "
        "run the bundle in a process of its own"
    )
