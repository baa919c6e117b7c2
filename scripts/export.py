"""Export weights to ONNX, TorchScript and TensorFlow.js: ``python scripts/export.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.common.command import run_command
    from scripts.sharing.export import export

    run_command(export)
