"""`python scripts/benchmark.py` measures what its config says, in turns, and keeps what it has after each case."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import OVERLAYS, ROOT, refused
from monai.bundle import ConfigParser

from scripts.benchmarking import benchmark as benchmarking
from scripts.benchmarking.benchmark import _cases, benchmark, run_benchmark
from scripts.benchmarking.case import measure
from scripts.common.errors import InputError

CONFIG = ROOT / "configs" / "benchmark.json"
GPU = OVERLAYS / "benchmark_gpu.json"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """The command, from another directory."""
    folder = tmp_path_factory.mktemp("benchmark")
    broken = {"name": "broken", "network": {"_target_": "scripts.networks.meshnet.MeshNet", "channels": 0}}
    work = config("dilated, eager torch", "broken")["work"]
    (folder / "overlay.json").write_text(json.dumps({"+implementations": [broken], "work": work}))
    flags = {"overlay": "overlay.json", "rounds": 1, "min_seconds": 0, "threads": 2, "output_dir": "out"}
    options = [str(part) for key, value in flags.items() for part in (f"--{key}", value)]
    program = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *options]
    return folder / "out", subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_each_case_is_measured_in_a_process_of_its_own(measured: tuple) -> None:
    output, run = measured
    assert run.returncode == 0, run.stderr
    results = json.loads((output / "results.json").read_text())
    row = results["cases"][0]
    assert (row["implementation"], len(row["seconds"]), row["max_difference"]) == ("dilated, eager torch", 1, 0)
    assert results["versions"]["torch"].startswith("2.13.0")


@pytest.mark.slow
def test_a_case_that_fails_says_so_and_the_rest_goes_on(measured: tuple) -> None:
    output, run = measured
    table = (output / "results.md").read_text()
    assert "channels must be at least 1, got 0" in table
    assert table.strip() in run.stdout


def config(*names: str) -> dict:
    work = {"mode": "inference", "channels": [5], "grids": [[32, 32, 32]], "implementations": list(names)}
    return {"work": [work], "implementations": [{"name": name, "network": None} for name in "abc"]}


def test_cases_take_turns_and_one_that_fails_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def run_case(case: dict) -> dict:
        ran.append(case["implementation"])
        if case["implementation"] == "b":
            return {"skipped": "failed"}
        return {"seconds": float(len(ran)), "peak_bytes": 1}

    monkeypatch.setattr(benchmarking, "_run_case", run_case)
    run_benchmark(config("a", "b", "c"), str(tmp_path), "cpu", 1, 3, 0.0)
    assert ran == ["a", "b", "c", "a", "c", "a", "c"]
    rows = {row["implementation"]: row for row in json.loads((tmp_path / "results.json").read_text())["cases"]}
    assert rows["a"]["seconds"] == [1.0, 4.0, 6.0]
    assert rows["b"]["skipped"] == "failed"


def test_what_was_measured_before_a_stop_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"seconds": 1.0, "peak_bytes": 1}])
    monkeypatch.setattr(benchmarking, "_run_case", lambda case: next(answers))
    with pytest.raises(StopIteration):
        run_benchmark(config("a", "b"), str(tmp_path), "cpu", 1, 1, 0.0)
    assert [row["implementation"] for row in json.loads((tmp_path / "results.json").read_text())["cases"]] == ["a"]


def test_wrong_keys_and_values_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.excepthook", None)
    for key, value, line in (
        ("only", "inference 7x7x7", "only inference 7x7x7: no such case; one is 'inference"),
        ("rounds", 0, "rounds 0"),
        ("round", 3, "did you mean rounds"),
        ("min_seconds", "long", "a finite number"),
    ):
        with refused(rf"^.*{line}.*\Z"):  # one line
            benchmark(output_dir="out", **{key: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("files", [[CONFIG], [CONFIG, GPU]], ids=["cpu", "gpu"])
def test_the_shipped_work_names_implementations_that_exist_and_has_a_reference_before_what_is_compared(
    files: list[Path],
) -> None:
    seen, names = set(), [name for name, _ in _cases(ConfigParser.load_config_files(files))]
    for _, case in _cases(ConfigParser.load_config_files(files)):
        work = (case["mode"], str(case["grid"]), case["channels"])
        assert case["is_reference"] or case["channels"] is None or case["mode"] == "training" or work in seen
        seen.add(work)
    assert len(set(names)) == len(names)
    assert f"inference {'256x256x256' if GPU in files else '128x128x128'} 16 this bundle" in names


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_computes_in_half_precision_but_for_the_reference_and_can_be_built(
    tmp_path: Path,
) -> None:
    cases = dict(_cases(ConfigParser.load_config_files([CONFIG, GPU])))
    assert {case["implementation"] for case in cases.values() if not case["amp"]} == {"dilated, eager torch"}
    for name, case in cases.items():
        here = {"device": "cpu", "threads": 2, "min_seconds": 0.0, "grid": [64, 64, 64]}
        here["reference"] = str(tmp_path / "o.npy")
        if case["channels"] in (5, None) and case["mode"] == "inference":
            assert measure(case | here)["seconds"] > 0, name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_of_one_says_so(tmp_path: Path) -> None:
    with refused("device cuda: torch .* finds no GPU here"):
        benchmark(gpu=True, output_dir=str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_an_unknown_implementation_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^work: no implementation 'ours'; there are a, b, c$"):
        run_benchmark(config("ours"), "out", "cpu", 2, 1, 0.0)
