"""Run by a config's ``initialize``, by its path: from then on ``scripts`` is this bundle's, in any directory."""

import importlib
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])

if sys.path[0] != ROOT:
    sys.path.insert(0, ROOT)  # before the current directory, where Python looks first
if str(getattr(importlib.import_module("scripts"), "__file__", None)) != str(Path(ROOT, "scripts", "__init__.py")):
    other = next(iter(sys.modules["scripts"].__path__))
    raise ImportError(
        f"{other}: this process has imported another package called scripts, which is in the way of {ROOT}/scripts; "
        "run the bundle in a process of its own"
    )
