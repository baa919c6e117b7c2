"""Make the Model Zoo's folder and zip: ``python scripts/package.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.common.command import run_command
    from scripts.sharing.package import package

    run_command(package)
