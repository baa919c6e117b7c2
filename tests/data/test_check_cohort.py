"""The command lists all that is wrong with a cohort, its test fold included, and exits with 1 if it cannot be used."""

from pathlib import Path

import pytest
from conftest import command

from scripts.common.errors import InputError
from scripts.data.check_cohort import check_cohort
from scripts.data.datalist import prepare_datalist
from scripts.data.datalist_schema import read_datalist


@pytest.mark.slow
def test_a_good_cohort(cohort: Path, capsys: pytest.CaptureFixture) -> None:
    prepare_datalist(str(cohort), spacing=2, spatial_size=8)
    capsys.readouterr()
    check_cohort(str(cohort))
    assert capsys.readouterr().out == "12 scans: 0 errors, 0 warnings\n"


def test_every_bad_scan_of_every_fold_is_in_the_table(cohort: Path, capsys: pytest.CaptureFixture) -> None:
    scans = read_datalist(Path(prepare_datalist(str(cohort), spacing=2, spatial_size=8)))["training"]
    (cohort / scans[0]["image"]).write_text("no scan")
    (cohort / scans[5]["label"]).unlink()
    (cohort / scans[8]["label"]).write_bytes((cohort / scans[7]["label"]).read_bytes())
    capsys.readouterr()
    with pytest.raises(InputError) as error:  # Python exits with 1 after any exception
        command(cohort.parent, "check_cohort", "--dataset_dir", "cohort")
    *rows, total = capsys.readouterr().out.splitlines()
    severities = [row.split()[0] for row in rows]
    assert str(error.value) == f"cohort/datalist.json: {severities.count('error')} errors in its scans"
    assert severities == sorted(severities, reverse=True)  # what is worst stands next to the prompt
    assert total == f"12 scans: {severities.count('error')} errors, {severities.count('warning')} warnings"
    for scan, key, words in (
        (scans[0], "image", "not a readable NIfTI image"),
        (scans[5], "label", "no such file"),
        (scans[8], "label", "the same content as"),
    ):
        assert any(str(cohort / scan[key]) in row and words in row for row in rows), (scan[key], words)


def test_a_missing_datalist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"datalist.json: no such file; write it with `python scripts/prepare_datal"):
        check_cohort(str(tmp_path))
