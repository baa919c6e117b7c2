"""A misspelt flag stops a command before it has done anything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["simulate_cohort", "prepare_datalist"])
def test_a_misspelt_flag_does_nothing(script: str, tmp_path: Path) -> None:
    place = ["--output_dir", tmp_path / "new"] if script == "simulate_cohort" else ["--dataset_dir", tmp_path]
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", *place, "--sed", "1"]
    result = subprocess.run([str(c) for c in command], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "Could not consume arg: --sed" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", ["simulate_cohort", "prepare_datalist"])
def test_help_lists_the_arguments_from_any_directory(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "--spacing" in result.stdout + result.stderr
