"""A command line means what was typed, and only a command line shows errors as lines."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import AFFINE, INFERENCE, TRAIN, bundle, refused, write
from monai.bundle import ConfigWorkflow

from scripts.common.errors import print_cause


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., dict]:
    """What MONAI's command line makes of flags: the values at keys of a config."""

    def run(config: str, keys: list[str], *flags: str) -> dict:
        values = ", ".join(f"'{key}': @{key}" for key in keys)
        (tmp_path / "look.json").write_text(json.dumps({"look": ["$@config", f"$print('told', {{{values}}})"]}))
        configs = str([config, str(tmp_path / "look.json")])
        monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "look", "--config_file", configs, *flags])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        runpy.run_module("monai.bundle", run_name="__main__")
        assert sys.excepthook is print_cause
        (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("told "))
        return eval(line.removeprefix("told ").replace("::", "#"))

    return run


@pytest.mark.parametrize(
    "text",
    ["Study #2", "2024_01_15", "007", "1e3", "Smith, John", "a#1.pt", "0x1F", "True", "{x}", "1.0", "a b", "a-b"],
)
def test_a_path_is_what_was_typed(text: str, told: Callable) -> None:
    keys = ["input", "dataset_dir", "output_dir", "ckpt_path", "runtime"]
    assert told(INFERENCE, keys, *(word for key in keys for word in (f"--{key}", text))) == dict.fromkeys(keys, text)
    assert told(INFERENCE, ["input"], f"--input={text}") == {"input": text}


def test_lists_quotes_numbers_and_words_are_read(told: Callable) -> None:
    flags = {
        "ckpt_path": ("['a #1.pt', 'b.pt']", ["a #1.pt", "b.pt"]),
        "input": ("'12'", "12"),
        "threshold": ("0.5", 0.5),
        "min_volume": ("none", None),
        "qc": ("false", False),
        "num_workers": ("2", 2),
    }
    words = [word for key, (text, _) in flags.items() for word in (f"--{key}", text)]
    assert told(INFERENCE, [*flags], *words) == {key: meant for key, (_, meant) in flags.items()}


def test_words_and_texts_below_a_block_are_read(told: Callable) -> None:
    flags = {
        "inner_fold": ("None", None),
        "optimizer#nesterov": ("false", False),
        "train#log#seconds": ("FALSE", False),
        "network_def#norm": ("none", None),
        "loss_def#reduction": ("null", None),
        "validate#dataloader#shuffle": ("True", True),
        "default_cohort#output_dir": ("made #2", "made #2"),
        "dataset_dir": ("2024_01_15", "2024_01_15"),
        "augmentation_name": ("none", "none"),
        "cache": ("none", "none"),
    }
    words = [word for key, (text, _) in flags.items() for word in (f"--{key}", text)]
    assert told(TRAIN, [*flags], *words) == {key: meant for key, (_, meant) in flags.items()}


def test_a_word_that_monai_leaves_out_below_a_block_is_refused(told: Callable) -> None:
    with refused("^network_def#act None: MONAI leaves this out; type none$"):
        told(TRAIN, [], "--network_def#act", "None")
    assert told(TRAIN, ["network_def#norm"], "--network_def#norm", "None") == {"network_def#norm": None}


def test_a_program_may_give_a_path_with_a_number_sign() -> None:
    made = ConfigWorkflow(INFERENCE, workflow_type=None, input="Study #2", output_dir="masks#2", ckpt_path=["a#1", "b"])
    made.parser.get_parsed_content("config")  # as the first thing of a run
    assert [made.parser.get_parsed_content(key) for key in ("input", "output_dir")] == ["Study #2", "masks#2"]
    assert made.parser.get_parsed_content("ckpt_path") == ["a#1", "b"]


@pytest.mark.slow
def test_the_folder_that_was_typed_is_segmented(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, name in (("Study", "one"), ("Study #2", "two")):
        write(tmp_path / folder / f"{name}.nii.gz", rng.integers(0, 900, (32, 40, 32)).astype(np.int16), 2 * AFFINE)
    done = bundle(
        "--config_file", INFERENCE, "--input", "Study #2", "--output_dir", "masks#2", "--qc", "false", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-500:]
    found = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*two*"))
    assert found[-1].parts[0] == "masks#2"
    assert not list(tmp_path.rglob("one*mask*"))


@pytest.mark.slow
def test_another_package_called_scripts_is_not_in_the_way(tmp_path: Path) -> None:
    write(tmp_path / "scan.nii.gz")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    done = bundle(
        "--config_file", INFERENCE, "--input", "scan.nii.gz", "--output_dir", "out", "--qc", "false", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert nib.load(next((tmp_path / "out").rglob("*mask.nii.gz"))).shape == (24, 30, 20)


@pytest.mark.kept
def test_a_program_keeps_its_own_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "analysis").mkdir()
    program = f"""from monai.bundle import create_workflow
create_workflow(config_file="{INFERENCE}", workflow_type=None, input="none", output_dir="out").config_root_path
print({{}}["age"])
"""
    (tmp_path / "analysis" / "mine.py").write_text(program)
    command = [sys.executable, "analysis/mine.py"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stderr.rstrip().endswith("KeyError: 'age'")
    assert "Traceback" in done.stderr
