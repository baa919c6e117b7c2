"""The command lists all that is wrong with a cohort, its test fold included, and exits with 1 if it cannot be used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from scripts.common.errors import InputError
from scripts.data.check_cohort import check_cohort


def test_a_good_cohort(cohort_dir: Path, capsys: pytest.CaptureFixture) -> None:
    check_cohort(str(cohort_dir))
    assert capsys.readouterr().out == "24 scans: 0 errors, 0 warnings\n"


def test_every_bad_scan_of_every_fold_is_in_the_table(cohort_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort_dir, tmp_path / "cohort")
    scans = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    (tmp_path / "cohort" / scans[0]["image"]).write_text("no scan")
    (tmp_path / "cohort" / scans[5]["label"]).unlink()
    shutil.copy(tmp_path / "cohort" / scans[7]["label"], tmp_path / "cohort" / scans[8]["label"])
    command = [sys.executable, str(ROOT / "scripts" / "check_cohort.py"), "--dataset_dir", "cohort"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert (
        result.stderr.splitlines()[-1]
        == f"cohort/datalist.json: {result.stdout.count('error    ')} errors in its scans"
    )
    *rows, total = result.stdout.splitlines()
    severities = [row.split()[0] for row in rows]
    assert severities == sorted(severities, reverse=True)  # what is worst stands next to the prompt
    assert total == f"24 scans: {severities.count('error')} errors, {severities.count('warning')} warnings"
    for scan, key, words in (
        (scans[0], "image", "not a readable NIfTI image"),
        (scans[5], "label", "no such file"),
        (scans[8], "label", "the same content as"),
    ):
        assert any(str(tmp_path / "cohort" / scan[key]) in row and words in row for row in rows), (scan[key], words)


def test_a_missing_datalist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"datalist.json: no such file; write it with `python scripts/prepare_datal"):
        check_cohort(str(tmp_path))
