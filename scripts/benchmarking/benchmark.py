"""MONAI and torch have no benchmark of networks against each other: this runs each case of benchmark.json in turn."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai
import torch
from tqdm import tqdm

from scripts.benchmarking.report import REFERENCE, draw_scaling, tables
from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.training.precision import has_bfloat16

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WORKER = Path(__file__).with_name("case.py")
DEFAULTS = {"engine": "eager", "precision": "fp32", "channels_last": False, "needs": []}
VERSIONS = ("torch", "monai", "onnxruntime", "openvino")


class Benchmark:
    """Runs every case once a round, each time in a new process, so that what disturbs the machine disturbs all alike.

    Args:
        config: the config, with ``implementations`` and ``work``.
        output_dir: folder for ``results.json``, ``results.md`` and ``scaling.png``; kept up to date after each case.
        device: "cpu" or "cuda".
        threads: of every implementation.
        rounds: how often each case is run.
        min_seconds: how long a case is repeated within a round, after one run to warm up; a first run that takes ten
            times as long is counted, and the only one.
        only: part of the name of the cases to run, such as "inference 128x128x128 16"; all by default.

    Raises:
        InputError: no such case.
    """

    def __init__(
        self, config: dict, output_dir: str, device: str, threads: int, rounds: int, min_seconds: float, only: str = ""
    ) -> None:
        self.output_dir, self.rounds = Path(output_dir), rounds
        every = {"device": device, "threads": threads, "min_seconds": min_seconds}
        self.cases = [case | every for case in _cases(config) if only in name_of(case)]
        if not self.cases:
            raise InputError(f"only {only}: no such case; one is {name_of(next(_cases(config)))!r}")
        self.results = {"command": shlex.join(sys.argv), **_machine(threads, device), "cases": []}

    def run(self) -> None:
        """Run all rounds, then print the tables."""
        bar = tqdm(total=self.rounds * len(self.cases), unit="case")
        with tempfile.TemporaryDirectory() as folder, bar:
            self.results["rates"] = _run_case({"mode": "rates", "threads": self.results["threads"]})
            for _ in range(self.rounds):
                for case in self.cases:
                    bar.set_description(name_of(case))
                    self._run(case, folder)
                    bar.update()
        print(tables(self.results))
        print(f"Tables, numbers and the plot: {self.output_dir}")

    def _run(self, case: dict, folder: str) -> None:
        shown = {key: case[key] for key in ("mode", "implementation", "channels", "grid")}
        row = next((row for row in self.results["cases"] if shown.items() <= row.items()), None)
        if row is None:
            row = shown | {"seconds": [], "peak_bytes": []}
            self.results["cases"].append(row)
        if "skipped" in row:
            return
        reference = Path(folder) / f"{name_of(case | {'implementation': ''}).strip()}.npy"
        result = _run_case(case | {"reference": str(reference)})
        for key in ("seconds", "peak_bytes"):
            row[key] += [result.pop(key)] if key in result else []
        row |= result
        with replace_file(self.output_dir / "results.json") as file:
            file.write(json.dumps(self.results, indent=4) + "\n")
        with replace_file(self.output_dir / "results.md") as file:
            file.write(tables(self.results))
        draw_scaling(self.results, self.output_dir / "scaling.png")


def _cases(config: dict) -> Iterator[dict]:
    for work in config["work"]:
        for grid in work["grids"]:
            for channels in work["channels"]:
                for name in work["implementations"]:
                    if name not in config["implementations"]:
                        known = ", ".join(config["implementations"])
                        raise InputError(f"work: no implementation {name!r}; there are {known}")
                    case = {"mode": work["mode"], "implementation": name, "channels": channels, "grid": grid}
                    yield DEFAULTS | config["implementations"][name] | case | {"is_reference": name == REFERENCE}


def name_of(case: dict) -> str:
    """For example "inference 128x128x128 16 this bundle"."""
    grid = "x".join(map(str, case["grid"] or ()))
    return " ".join(str(part) for part in (case["mode"], grid, case["channels"], case["implementation"]) if part)


def _run_case(case: dict) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": str(case["threads"])}
    command = [sys.executable, str(WORKER), json.dumps(case)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        why = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"skipped": f"failed with exit code {process.returncode}: {why[:200]}"}
    return json.loads(process.stdout.splitlines()[-1])


def _machine(threads: int, device: str) -> dict:
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        cpu = Path("/proc/cpuinfo").read_text().split("model name")[1].split("\n")[0].strip("\t: ")
    flags = torch.cpu.get_capabilities()
    versions = {}
    for package in VERSIONS:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else cpu,
        "features": [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if flags.get(name)],
        "threads": threads,
        "precision": "fp16" if device.startswith("cuda") else "bf16" if has_bfloat16() else "fp32",
        "python": platform.python_version(),
        "versions": versions,
        "bundle": json.loads((CONFIGS.parent / "metadata.json").read_text())["version"],
    }


def benchmark(overlay: str | None = None, **overrides: Any) -> None:
    """Measure by ``configs/benchmark.json``.

    Args:
        overlay: a config file with what differs from it.
        overrides: any key of it, as a flag.
    """
    configs = [str(CONFIGS / "benchmark.json"), *([overlay] if overlay else [])]
    monai.bundle.run(config_file=configs, meta_file=str(CONFIGS / "metadata.json"), **overrides)
