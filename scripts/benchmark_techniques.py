"""Measure what each technique does: ``python scripts/benchmark_techniques.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.benchmarking.techniques import benchmark_techniques
from scripts.common.command import run_command

if __name__ == "__main__":
    run_command(benchmark_techniques)
