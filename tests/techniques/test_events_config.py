"""events.json: the lines of a real run are its history, also if it was stopped in the middle."""

import csv
import json
from pathlib import Path

import pytest
from conftest import train_here
from ignite.engine import Events


def train(cohort_dir: Path, folder: Path, stop_in_iteration: int | None = None, **overrides: object) -> list[dict]:
    """Train for 2 epochs of 10 iterations; the lines of events.jsonl."""
    stop = Events.ITERATION_STARTED(once=stop_in_iteration) if stop_in_iteration else None
    train_here(cohort_dir, folder, "events", stop=stop, **{"epochs": 2, "report": False, **overrides})
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_tells_each_epoch_of_the_history_once(
    cohort_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        train(cohort_dir, tmp_path, stop_in_iteration=15)
    lines = train(cohort_dir, tmp_path, resume=True)
    told = [(line["event"], line["epoch"]) for line in lines]
    assert told == [("started", 0), ("epoch", 1), ("stopped", 1), ("started", 1), ("epoch", 2), ("completed", 2)]
    assert [line.get("continued") for line in lines if line["event"] == "started"] == [False, True]
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    for row, line in zip(rows, (line for line in lines if line["event"] == "epoch"), strict=True):
        assert {key: str(line[key]) for key in row} == row
        assert line["seconds"] > 0


def test_it_works_with_batches_accumulation_and_no_validation(cohort_dir: Path, tmp_path: Path) -> None:
    lines = train(cohort_dir, tmp_path, epochs=1, batch_size=2, accumulation_steps=2, inner_fold="none")
    assert [line["event"] for line in lines] == ["started", "epoch", "completed"]


def test_a_run_that_is_refused_leaves_the_events_of_the_run_that_is_there(cohort_dir: Path, tmp_path: Path) -> None:
    train(cohort_dir, tmp_path, epochs=1)
    before = (tmp_path / "events.jsonl").read_bytes()
    with pytest.raises(RuntimeError):
        train(cohort_dir, tmp_path, epochs=1)
    assert (tmp_path / "events.jsonl").read_bytes() == before
