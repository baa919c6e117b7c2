"""How long tests and the fixtures they share take: ``pytest --record-durations`` writes it into durations.json.

The table says what a quiet machine measured once. So markers are held to it, and nothing is timed to check them.
"""

import json
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("durations.json")
LIMIT = 3.0  # seconds
# Shared fixtures over the limit that run by default, each the one of its kind.
KEPT_FIXTURES = {
    "tests::cohort_dir",
    "tests::contrast_dir",
    "tests::trained",
    "tests/evaluation::evaluated",
    "tests/inference/test_inference_config.py::segmented",
    "tests/search::searched",
    "tests/sharing/test_export.py::exported",
}


class Recorder:
    """Measures each test, and each shared fixture without the fixtures that it needs itself."""

    def __init__(self) -> None:
        import torch._dynamo  # noqa: F401, the first step of an optimizer does, in 4 s that belong to no test

        self.tests: Counter[str] = Counter()
        self.fixtures: Counter[str] = Counter()
        self.running: list[float] = []  # for each fixture that is being made, the seconds that others took within

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef) -> Generator[None, object, object]:
        begin = time.perf_counter()
        self.running.append(0.0)
        try:
            return (yield)
        finally:
            took = time.perf_counter() - begin
            own = took - self.running.pop()
            if self.running:
                self.running[-1] += took
            if fixturedef.scope != "function":
                self.fixtures[name_of(fixturedef)] += own

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Function) -> Generator[None, object, object]:
        begin, before = time.perf_counter(), self.fixtures.total()
        try:
            return (yield)
        finally:
            self.tests[item.nodeid] = time.perf_counter() - begin - (self.fixtures.total() - before)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        found = {"tests": self.tests, "fixtures": self.fixtures}
        if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist, whose first one writes the table
            session.config.workeroutput["durations"] = {part: {**rows} for part, rows in found.items()}
            return
        table = json.loads(TABLE.read_text())
        for part, rows in found.items():
            kept = {name: seconds for name, seconds in table[part].items() if name not in rows}
            new = {name: round(seconds, 1) for name, seconds in rows.items() if seconds >= 1}
            table[part] = dict(sorted((kept | new).items()))
        TABLE.write_text(json.dumps(table, indent=1) + "\n")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        for part, rows in getattr(node, "workeroutput", {}).get("durations", {}).items():
            mine = getattr(self, part)
            mine.update({name: took - mine[name] for name, took in rows.items() if took > mine[name]})


def name_of(fixturedef: pytest.FixtureDef) -> str:
    return f"{fixturedef.baseid}::{fixturedef.argname}"


def takes_long(item: pytest.Function, table: dict[str, dict[str, float]]) -> bool:
    """Whether the table says that a test, or a fixture that it alone is reason to make, takes over the limit."""
    fixtures = {name_of(found[-1]) for found in item._fixtureinfo.name2fixturedefs.values()} - KEPT_FIXTURES
    seconds = [table["tests"].get(item.nodeid, 0), *(table["fixtures"].get(name, 0) for name in fixtures)]
    return max(seconds) > LIMIT
