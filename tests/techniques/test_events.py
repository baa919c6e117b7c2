"""Every epoch is one line of JSON, at once, and is there once however often the run was interrupted."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import restoring
from ignite.engine import Engine, Events

from scripts.common.errors import InputError
from scripts.techniques.events import EventLog


def lines_of(folder: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "events.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def epochs_in(folder: Path) -> list[int]:
    return [line["epoch"] for line in lines_of(folder) if line["event"] == "epoch"]


def run(
    folder: Path, restored: int = 0, epochs: int = 4, state_handler: Callable = lambda trainer: None
) -> tuple[Engine, list[list[int]]]:
    """A trainer whose log comes before the events and whose state comes behind them, to continue after some epochs.

    Also the epochs that a reader found in the file when each epoch began.
    """
    trainer, seen = Engine(lambda engine, batch: None), []
    trainer.state.run_log = {"rows": []}

    def log(trainer: Engine) -> None:
        row = {"epoch": trainer.state.epoch, "loss": 0.5, "lr": 1e-3, "val_precision": float("nan")}
        trainer.state.run_log["rows"].append(row)

    def raise_again(trainer: Engine, error: BaseException) -> None:
        raise error

    restoring(trainer, log, restored)
    EventLog(str(folder)).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, state_handler)
    trainer.add_event_handler(Events.EXCEPTION_RAISED, raise_again)
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: seen.append(epochs_in(folder)))
    trainer.run([0, 1], max_epochs=epochs)
    return trainer, seen


def stop_after(epoch: int, error: BaseException) -> Callable:
    def handler(trainer: Engine) -> None:
        if trainer.state.epoch == epoch:
            raise error

    return handler


def test_a_reader_finds_each_epoch_as_soon_as_it_is_over(tmp_path: Path) -> None:
    _, seen = run(tmp_path, epochs=3)
    assert seen == [[], [1], [1, 2]]
    lines = lines_of(tmp_path)
    assert [line["event"] for line in lines] == ["started", "epoch", "epoch", "epoch", "completed"]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 3]
    assert {line["epochs"] for line in lines} == {3}
    assert lines[0]["continued"] is False
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", line["time"]) for line in lines)
    assert lines[1]["loss"] == 0.5
    assert lines[1]["val_precision"] is None  # NaN is not JSON


def test_remaining_is_the_mean_epoch_times_those_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 130.0, 160.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    run(tmp_path, epochs=3)
    lines = [line for line in lines_of(tmp_path) if line["event"] == "epoch"]
    assert [line["seconds"] for line in lines] == [10, 20, 30]
    assert [line["remaining"] for line in lines] == [20, 15, 0]


def test_a_run_that_is_stopped_by_the_state_says_so_and_has_the_epoch_that_is_in_the_state(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(tmp_path, state_handler=stop_after(2, SystemExit(143)))
    lines = lines_of(tmp_path)
    assert [(line["event"], line["epoch"]) for line in lines[1:]] == [("epoch", 1), ("epoch", 2), ("stopped", 2)]
    run(tmp_path, restored=2)
    assert epochs_in(tmp_path) == [1, 2, 3, 4]
    started = [line for line in lines_of(tmp_path) if line["event"] == "started"]
    assert [(line["epoch"], line["continued"]) for line in started] == [(0, False), (2, True)]


def test_a_run_that_fails_says_why_once(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run(tmp_path, state_handler=stop_after(3, InputError("the loss is nan")))
    failed = [line for line in lines_of(tmp_path) if line["event"] == "failed"]
    assert [(line["epoch"], line["error"]) for line in failed] == [(3, "the loss is nan")]


def test_after_a_kill_epochs_that_are_repeated_and_a_line_cut_short_are_gone(tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "events.jsonl"
    whole = file.read_text().splitlines()
    file.write_text("\n".join([*whole[:4], whole[4][:20]]))  # killed while writing epoch 4; the state has epoch 1
    _, seen = run(tmp_path, restored=1)
    assert seen[0] == [1]
    assert epochs_in(tmp_path) == [1, 2, 3, 4]
    assert [line["event"] for line in lines_of(tmp_path)][:3] == ["started", "epoch", "started"]


def test_epochs_from_before_the_overlay_was_added_are_made_up_for_without_times(tmp_path: Path) -> None:
    run(tmp_path)
    file = tmp_path / "events.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:2]))  # the state has epoch 2
    run(tmp_path, restored=2)
    assert epochs_in(tmp_path) == [1, 2, 3, 4]
    second = next(line for line in lines_of(tmp_path) if line["event"] == "epoch" and line["epoch"] == 2)
    assert (second["loss"], second["seconds"], second["remaining"]) == (0.5, None, None)


def test_a_new_run_begins_a_new_file(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, epochs=1)
    assert epochs_in(tmp_path) == [1]


def test_a_file_of_somebody_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("hello\n")
    with pytest.raises(InputError, match=r"events.jsonl: not lines of JSON .*; put it back, or delete it"):
        run(tmp_path, restored=1)


def test_an_early_stop_is_an_event_with_its_reason(tmp_path: Path) -> None:
    def stop_early(trainer: Engine) -> None:
        if trainer.state.epoch == 2:
            trainer.state.stopped_early = "no gain in 1 validations since epoch 1"
            trainer.terminate()

    run(tmp_path, state_handler=stop_early)
    stopped, completed = lines_of(tmp_path)[-2:]
    assert (stopped["event"], stopped["epoch"], stopped["epochs"]) == ("stopped_early", 2, 4)
    assert stopped["reason"] == "no gain in 1 validations since epoch 1"
    assert (completed["event"], completed["epoch"]) == ("completed", 2)
