"""What every room uses: errors of one line, files that are replaced whole, commands, the check of a config.

Nothing that knows about scans, networks or training.
"""

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
