"""Of every scan that was left out there is a row, however many processes write, and none once it has its mask."""

import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from scripts.inference.failures import note_failures, read_failures


def rows(folder: Path) -> dict[str, str]:
    with (folder / "failures.tsv").open() as file:
        return {row["scan"]: row["reason"] for row in csv.DictReader(file, delimiter="\t")}


def note_six(folder: Path, job: int) -> None:
    for i in range(6):
        note_failures(folder, {f"sub-{job}/sub-{job}_run-{i}_T2w.nii.gz": f"by {job}"})
    note_failures(folder, {f"sub-{job}/sub-{job}_run-{i}_T2w.nii.gz": None for i in range(3)})


def test_eight_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(8, get_context("fork")) as pool:
        list(pool.map(note_six, [tmp_path] * 8, range(8)))
    expected = {f"sub-{job}/sub-{job}_run-{i}_T2w.nii.gz": f"by {job}" for job in range(8) for i in range(3, 6)}
    assert rows(tmp_path) == read_failures(tmp_path) == expected


def test_a_scan_that_succeeds_loses_its_row_and_the_last_one_the_table(tmp_path: Path) -> None:
    note_failures(tmp_path, {"sub-1": "no T2w scan", "sub-2/a_T2w.nii.gz": "broken:\n two\tlines"})
    assert rows(tmp_path) == {"sub-1": "no T2w scan", "sub-2/a_T2w.nii.gz": "broken: two lines"}
    note_failures(tmp_path, {"sub-2/a_T2w.nii.gz": None, "sub-3/b_T2w.nii.gz": None})
    assert rows(tmp_path) == {"sub-1": "no T2w scan"}
    note_failures(tmp_path, {"sub-1": None})
    assert not (tmp_path / "failures.tsv").exists()
