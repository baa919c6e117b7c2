"""`python scripts/benchmark.py` measures what its config says, in turns, and keeps what it has after each case."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser

from scripts.benchmarking.benchmark import Benchmark, _cases, name_of
from scripts.common.errors import InputError

CONFIG = ROOT / "configs" / "benchmark.json"


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    program = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *map(str, arguments)]
    return subprocess.run(program, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("benchmark")
    names = ["dilated, eager torch", "this bundle", "broken", "no package"]
    overlay = {
        "+implementations": {
            "broken": {"network": {"_target_": "scripts.networks.meshnet.MeshNet", "channels": 0}},
            "no package": {"network": None, "needs": ["no_such_package"]},
        },
        "work": [{"mode": "inference", "channels": [5], "grids": [[32, 32, 32]], "implementations": names}],
    }
    (folder / "overlay.json").write_text(json.dumps(overlay))
    options = ("--overlay", "overlay.json", "--rounds", 2, "--min_seconds", 0, "--output_dir", "out")
    return {"folder": folder, "run": command(*options, cwd=folder)}


def test_each_case_is_measured_once_a_round(measured: dict) -> None:
    assert measured["run"].returncode == 0, measured["run"].stderr
    results = json.loads((measured["folder"] / "out" / "results.json").read_text())
    rows = {row["implementation"]: row for row in results["cases"]}
    assert len(rows["this bundle"]["seconds"]) == len(rows["dilated, eager torch"]["seconds"]) == 2
    assert rows["this bundle"]["different_voxels"] < 0.05
    assert results["versions"]["torch"].startswith("2.13.0")


def test_a_case_that_fails_or_lacks_a_package_says_so_and_the_rest_go_on(measured: dict) -> None:
    table = (measured["folder"] / "out" / "results.md").read_text()
    assert "channels must be at least 1, got 0" in table
    assert "no_such_package not installed" in table
    assert table.strip() in measured["run"].stdout
    assert (measured["folder"] / "out" / "scaling.png").is_file()


def test_a_case_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    result = command("--only", "inference 7x7x7", "--output_dir", "out", cwd=tmp_path)
    assert result.returncode
    assert result.stderr.strip().splitlines()[-1].startswith("only inference 7x7x7: no such case; one is 'inference")
    assert not list(tmp_path.iterdir())


def test_the_shipped_work_names_implementations_that_exist_and_has_a_reference_before_what_is_compared() -> None:
    config = ConfigParser.load_config_file(CONFIG)
    seen = set()
    for case in _cases(config):
        work = name_of(case | {"implementation": ""})
        assert case["is_reference"] or case["channels"] is None or case["mode"] == "training" or work in seen
        seen.add(work)
    assert len({name_of(case) for case in _cases(config)}) == len(list(_cases(config)))


def test_an_unknown_implementation_is_one_line() -> None:
    work = [{"mode": "inference", "channels": [5], "grids": [[32, 32, 32]], "implementations": ["ours"]}]
    with pytest.raises(InputError, match=r"^work: no implementation 'ours'; there are theirs$"):
        Benchmark({"work": work, "implementations": {"theirs": {}}}, "out", "cpu", 2, 1, 0.0)
