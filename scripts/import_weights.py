"""Import a MeshNet of others: ``python scripts/import_weights.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common.command import run_command
from scripts.sharing.import_weights import import_weights

if __name__ == "__main__":
    run_command(import_weights)
