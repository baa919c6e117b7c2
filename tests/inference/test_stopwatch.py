"""The line at a run's end adds up to the seconds that it took."""

import re
import time

import pytest

from scripts.inference.stopwatch import Stopwatch

LINE = r"(\d) scan\(s\) in (.*) s, (.*) s each: (.*)"


def test_the_report_has_seconds_a_round_by_part_longest_first() -> None:
    watch = Stopwatch()
    watch.lap("before the start")
    start = time.perf_counter()
    watch.start()
    for _ in range(2):
        watch.lap("reading")
        time.sleep(0.05)
        watch.lap("network")
    watch.lap("waiting")
    took = time.perf_counter() - start
    rounds, total, each, parts = re.fullmatch(LINE, watch.report()).groups()
    assert rounds == "2"
    assert float(total) == pytest.approx(took, abs=0.06)
    assert float(each) == pytest.approx(took / 2, abs=0.02)
    assert parts.startswith("network 0.0")
    assert sorted(part.split()[0] for part in parts.split(", ")) == ["network", "reading", "waiting"]


def test_without_a_round_there_is_no_line() -> None:
    watch = Stopwatch()
    watch.start()
    assert watch.report() == ""
