"""A wider MeshNet from a trained one: ``python scripts/widen.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.common.command import run_command
    from scripts.weights.net2wider import widen

    run_command(widen)
