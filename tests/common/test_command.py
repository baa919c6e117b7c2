"""A misspelt flag stops a command before it has done anything, and a boolean is what it says."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts.common.command import run_command, typed_flags

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["simulate_cohort", "prepare_datalist"])
def test_a_misspelt_flag_does_nothing(script: str, tmp_path: Path) -> None:
    place = ["--output_dir", tmp_path / "new"] if script == "simulate_cohort" else ["--dataset_dir", tmp_path]
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", *place, "--sed", "1"]
    result = subprocess.run([str(c) for c in command], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert "Could not consume arg: --sed" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("script", ["simulate_cohort", "prepare_datalist"])
def test_help_lists_the_arguments_from_any_directory(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--help"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert "--spacing" in result.stdout + result.stderr


def all_given(folder: str = "here", example: bool = True) -> tuple:
    return folder, example


def any_flag(overlay: str | None = None, dry_run: bool = False, **overrides: Any) -> tuple:
    return overlay, dry_run, overrides


def needs_one(path: str, quantiles: bool = False) -> tuple:
    return path, quantiles


@pytest.mark.parametrize(
    ("function", "arguments", "answer"),
    [
        (all_given, [], ("here", True)),
        (all_given, ["--example", "false"], ("here", False)),
        (all_given, ["--example=False"], ("here", False)),
        (all_given, ["there", "true"], ("there", True)),
        (any_flag, ["--dry_run", "false"], (None, False, {})),
        (any_flag, ["--dry_run", "true", "--epochs", "3"], (None, True, {"epochs": 3})),
        (any_flag, ["--dry_run"], (None, True, {})),
        (needs_one, ["a", "--quantiles", "false"], ("a", False)),
        (needs_one, ["--path", "a", "--quantiles", "true"], ("a", True)),
        (needs_one, ["dl #2.json"], ("dl #2.json", False)),
        (needs_one, ["--path", "2024_01_15"], ("2024_01_15", False)),
        (needs_one, ["--path=Smith, John"], ("Smith, John", False)),
        (needs_one, ["--path", "True"], ("True", False)),
        (all_given, ["'12'"], ("12", True)),
        (any_flag, ["--overlay", "mine #2.json", "--epochs", "3"], ("mine #2.json", False, {"epochs": 3})),
    ],
)
def test_a_boolean_is_what_it_says(
    function: Any, arguments: list[str], answer: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["command.py", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # the command sets its own
    assert run_command(function) == answer


@pytest.mark.parametrize(
    ("function", "arguments", "line"),
    [
        (all_given, ["--folder", "--example", "false"], "A flag for a text has none behind it"),
        (all_given, ["--example", "maybe"], "--example maybe: expected true or false"),
        (any_flag, ["--dry_run", "maybe"], "--dry_run maybe: expected true or false"),
    ],
)
def test_a_flag_with_nothing_or_another_word_behind_it_is_refused(
    function: Any, arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["command.py", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as stop:
        run_command(function)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err


def test_the_texts_of_flags_are_those_behind_them_and_no_flag_is_none() -> None:
    assert typed_flags([]) == {}
    assert typed_flags(["--a", "b c", "--d=e=f", "--g", "--h-i", "-1"]) == {"a": "b c", "d": "e=f", "h_i": "-1"}
