"""Measure speed and memory: ``python scripts/benchmark.py --help``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python looks is scripts/ instead
    from scripts.benchmarking.benchmark import benchmark
    from scripts.common.command import run_command

    run_command(benchmark)
