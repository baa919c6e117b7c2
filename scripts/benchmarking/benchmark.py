"""Run each case of ``configs/benchmark.json`` in a process of its own, in turns."""

import datetime
import importlib.metadata
import itertools
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

import torch
from tqdm import tqdm

from scripts.benchmarking.report import REFERENCE, tables
from scripts.common.command import run_config
from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.execution.precision import autocast_dtype

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = {"engine": "eager", "amp": False, "amp_dtype": "auto", "channels_last": False, "needs": []}
SHOWN = ("mode", "implementation", "channels", "grid")
PACKAGES = ("monai", "onnxruntime", "openvino", "torch")


def run_benchmark(
    config: dict, output_dir: str, device: str, threads: int, rounds: int, min_seconds: float, only: str = ""
) -> None:
    """Run every case once a round, each time in a new process, so that what disturbs the machine disturbs all alike.

    ``results.json`` and ``results.md`` are kept up to date after each case.

    Args:
        config: the config, with ``implementations`` and ``work``; the others are its keys of the same names.
        min_seconds: how long a case is repeated within a round; one that takes ten times as long is run once.
        only: part of the name of the cases to run, such as "inference 128x128x128 16"; all by default.

    Raises:
        InputError: no such case, implementation or device, or a number that is too small.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device}: torch {torch.__version__} finds no GPU here")
    if threads < 1 or rounds < 1 or min_seconds < 0:
        raise InputError(f"threads {threads}, rounds {rounds}, min_seconds {min_seconds}: expected at least 1, 1 and 0")
    cases = {name: case for name, case in _cases(config) if only in name}
    if not cases:
        raise InputError(f"only {only}: no such case; one is {next(_cases(config))[0]!r}")
    every = {"device": device, "threads": threads, "min_seconds": min_seconds}
    results = {"command": shlex.join(["python", *sys.argv]), **machine(threads, device), "cases": []}
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in (turns := tqdm([*cases] * rounds, unit="case")):
            turns.set_description(name)
            case = cases[name] | every
            row = rows.setdefault(name, {key: case[key] for key in SHOWN} | {"seconds": [], "peak_bytes": []})
            reference = f"{folder}/{case['mode']} {case['grid']} {case['channels']}.npy"
            result = {} if "skipped" in row else _run_case(case | {"reference": reference})
            for key in ("seconds", "peak_bytes"):
                row[key] += [result.pop(key)] if key in result else []
            row |= result
            results["cases"] = list(rows.values())
            for path, text in (("results.json", json.dumps(results, indent=4)), ("results.md", tables([results]))):
                with replace_file(Path(output_dir, path)) as file:
                    file.write(text)
    print(tables([results]), f"Tables and numbers: {output_dir}", sep="\n")


def _cases(config: dict) -> Iterator[tuple[str, dict]]:
    """Yield all cases with their names, for example "inference 128x128x128 16 this bundle"."""
    known = {implementation["name"]: implementation for implementation in config["implementations"]}
    for work in config["work"]:
        for grid, channels, name in itertools.product(work["grids"], work["channels"], work["implementations"]):
            if name not in known:
                raise InputError(f"work: no implementation {name!r}; there are {', '.join(known)}")
            case = {"mode": work["mode"], "implementation": name, "channels": channels, "grid": grid}
            parts = (work["mode"], "x".join(map(str, grid or ())), channels, name)
            case = DEFAULTS | known[name] | case | {"is_reference": name == REFERENCE}
            yield " ".join(str(part) for part in parts if part), case


def _run_case(case: dict) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": str(case["threads"])}
    command = [sys.executable, "-m", "scripts.benchmarking.case", json.dumps(case)]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if process.returncode:
        why = (process.stderr.strip().splitlines() or ["no message"])[-1]
        return {"skipped": f"failed with exit code {process.returncode}: {why[:200]}"}
    return json.loads(process.stdout.splitlines()[-1])


def machine(threads: int, device: str) -> dict:
    """Return what figures depend on: date, device, its features, threads, precision and versions, in terms of JSON."""
    cpu = Path("/proc/cpuinfo")
    flags = torch.cpu.get_capabilities()
    versions = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    name = cpu.read_text().split("model name")[1].split("\n")[0].strip("\t: ") if cpu.is_file() else platform.machine()
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else name,
        "features": [flag for flag in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if flags.get(flag)],
        "threads": threads,
        "precision": str(autocast_dtype(True, device) or torch.float32).removeprefix("torch."),
        "versions": {"python": platform.python_version()} | {name: versions.get(name) for name in PACKAGES},
        "bundle": json.loads((ROOT / "configs" / "metadata.json").read_text())["version"],
    }


def benchmark(overlay: str | None = None, gpu: bool = False, **overrides: Any) -> None:
    """Measure by ``configs/benchmark.json``.

    Args:
        overlay: a config file with what differs from it.
        gpu: measure on a GPU what ``configs/overlays/benchmark_gpu.json`` says, on whole volumes of 256x256x256 voxels.
        overrides: any key of it, as a flag.
    """
    run_config(["benchmark.json", *["overlays/benchmark_gpu.json"] * gpu], overlay, **overrides)
