"""The bundle's own package is imported, or the one in its way is named; a program keeps its own tracebacks."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from conftest import INFERENCE, ROOT, bundle, write


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
def test_a_program_keeps_its_own_tracebacks_and_hears_of_a_package_in_the_way(tmp_path: Path) -> None:
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
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    (tmp_path / "analysis" / "mine.py").write_text(f"import sys\nsys.path.insert(0, '.')\nimport scripts\n{program}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    line = (
        f"{tmp_path}/scripts: this process has imported another package called scripts, which is in the way of {ROOT}"
    )
    assert line in done.stderr.replace("./scripts", f"{tmp_path}/scripts")
