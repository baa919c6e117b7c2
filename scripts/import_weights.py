"""Import a MeshNet of others: ``python scripts/import_weights.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.common.command import run_command
    from scripts.sharing.import_weights import import_weights

    run_command(import_weights)
