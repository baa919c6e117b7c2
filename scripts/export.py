"""Export weights to ONNX, TorchScript and TensorFlow.js: ``python scripts/export.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.common.command import run_command
from scripts.sharing.export import export

if __name__ == "__main__":
    run_command(export)
