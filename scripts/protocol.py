"""Compare networks by the paper's protocol: ``python scripts/protocol.py --help``."""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common.command import run_command, run_config


def protocol(overlay: str | None = None, dry_run: bool = False, **overrides: Any) -> None:
    """Train and evaluate networks over folds and restarts by ``configs/protocol.json``, and write their table.

    Args:
        overlay: a config file with what differs from it.
        dry_run: only say which runs there are and, after a measured step of each network, how many hours they take.
        overrides: any key of it, as a flag.
    """
    run_config(["protocol.json"], overlay, "estimating" if dry_run else "comparing", **overrides)


if __name__ == "__main__":
    run_command(protocol)
