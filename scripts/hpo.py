"""Search hyperparameters: ``python scripts/hpo.py --help``."""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common.command import run_command, run_config


def hpo(overlay: str | None = None, **overrides: Any) -> None:
    """Search hyperparameters by ``configs/hpo.json``.

    Args:
        overlay: a config file with what differs from it.
        overrides: any key of it, as a flag.
    """
    run_config(["hpo.json"], overlay, **overrides)


if __name__ == "__main__":
    run_command(hpo)
