"""Ratios are what one computes by hand, and the tables in the docs are those of docs/benchmark.json."""

import json
import re

from conftest import ROOT

from scripts.benchmarking.report import BUNDLE, RECORD, REFERENCE, tables


def case(implementation: str, seconds: list[float], mode: str = "inference", **others: object) -> dict:
    row = {"mode": mode, "implementation": implementation, "channels": 16, "grid": [32, 32, 32]}
    return row | {"seconds": seconds, "peak_bytes": [5_000_000], "parameters": 56_194} | others


def results(*cases: dict, **others: object) -> dict:
    machine = {"date": "2026-11-21", "device": "a CPU", "features": ["avx2"], "threads": 2, "precision": "bfloat16"}
    versions = {"torch": "2.13.0", "openvino": None}
    return machine | {"versions": versions, "command": "python b.py", "cases": list(cases)} | others


def cells(text: str, title: str, name: str) -> list[str]:
    """The cells of the row ``name`` in the table ``title``."""
    (table,) = re.findall(rf"^\| {title}; [^\n]*\n(.*?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return next([c.strip() for c in line.split("|")[2:-1]] for line in table.splitlines() if f"| {name} |" in line)


def test_a_ratio_is_that_of_the_medians() -> None:
    text = tables(
        [results(case(REFERENCE, [9.0, 6.0, 1.0], peak_bytes=[7, 20_000_000]), case(BUNDLE, [2.0, 1.5, 7.0]))]
    )
    assert cells(text, "Inference, seconds", BUNDLE) == ["2"]
    assert cells(text, "Inference, seconds", REFERENCE) == ["3"]
    assert cells(text, "Inference, peak MB", BUNDLE) == ["5"]
    assert cells(text, "Inference, peak MB", REFERENCE) == ["4"]


def test_networks_of_another_kind_are_compared_with_each_width() -> None:
    ours = [case(BUNDLE, [seconds], channels=channels) for channels, seconds in ((5, 1.0), (26, 4.0))]
    text = tables([results(*ours, case("UNet", [2.0], channels=None, parameters=1_979_610))])
    assert "| Inference, seconds; 5/26 channels | 32x32x32 |" in text
    assert cells(text, "Inference, seconds", "UNet") == ["2/0.5"]


def test_what_was_measured_alone_is_there_with_its_own_value() -> None:
    assert cells(tables([results(case(REFERENCE, [2.5]))]), "Inference, seconds", REFERENCE) == ["(2.5)"]
    text = tables([results(case("UNet", [2.5], channels=None))])
    assert cells(text, "Inference, seconds", "UNet") == ["(2.5)"]


def test_each_ratio_is_within_a_run_and_the_last_run_counts() -> None:
    first = results(case(BUNDLE, [1.0]), case(REFERENCE, [2.0]), case("UNet", [3.0]))
    second = results(case(BUNDLE, [10.0]), case(REFERENCE, [50.0]))
    text = tables([first, second])
    assert cells(text, "Inference, seconds", BUNDLE) == ["10"]
    assert cells(text, "Inference, seconds", REFERENCE) == ["5"]
    assert cells(text, "Inference, seconds", "UNet") == ["3"]


def test_each_machine_has_tables_of_its_own() -> None:
    text = tables([results(case(BUNDLE, [1.0])), results(case(BUNDLE, [0.1]), device="a GPU")])
    on_cpu, on_gpu = text.split("**a GPU")
    assert cells(on_cpu, "Inference, seconds", BUNDLE) == ["1"]
    assert cells(on_gpu, "Inference, seconds", BUNDLE) == ["0.1"]


def test_what_was_skipped_is_there_with_its_reason() -> None:
    text = tables([results(case(BUNDLE, [1.0]), case("OpenVINO", [], skipped="openvino not installed"))])
    assert "- OpenVINO: openvino not installed" in text


def test_the_tables_of_the_docs_are_made_from_the_record() -> None:
    """The page has both tables of seconds, and two pages of experiments those of memory."""
    speed = ROOT / "docs" / "performance.md"
    memory = [ROOT / "docs" / "experiments" / f"2026-11-22-memory-of-{work}.md" for work in ("inference", "training")]
    made = re.findall(r"(?:^\|.*\n)+", tables(json.loads(RECORD.read_text())), re.MULTILINE)
    told = [re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE) for page in (speed, *memory)]
    assert len(made) == 5
    assert told[0] == [table for table in made if ", seconds;" in table]
    assert told[1] + told[2] == [table for table in made if ", seconds;" not in table]
