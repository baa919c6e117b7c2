"""What each technique does: trains with it and without, over several seeds, and compares on the test fold."""

import csv
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from tqdm import tqdm

from scripts.benchmarking.benchmark import machine
from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.common.json_file import read_json
from scripts.common.menus import MENUS
from scripts.training.run_record import git_revision
from scripts.weights.weights import Weights

CONFIGS = MENUS.parent
PLAIN = "plain recipe"
NOT_OVERLAYS = {"benchmark", "evaluate", "hpo", "hpo_augmentation", "inference", "labels", "metadata", "train", "usual"}
NOT_OVERLAYS |= {"benchmark_gpu", "hpo_baseline", "protocol"}
# Other scans, weights to start or to learn from, other epochs, several processes; or they only show and keep.
NOT_COMPARED = {"baseline", "contrasts", "distill", "distributed", "events", "finetune", "keep_checkpoints"}
NOT_COMPARED |= {"simulated_patients", "teacher_agreement", "tracking"}


def benchmark_techniques(
    output_dir: str = "eval/techniques",
    only: str = "",
    seeds: tuple = (0, 1, 2),
    epochs: int = 50,
    dataset_dir: str = "",
    processes: int = 1,
) -> None:
    """Train the recipe plain and with each technique, and evaluate on the held-out test fold.

    Seed by seed, so that what disturbs the machine disturbs all alike. ``results.json`` and ``results.md`` are kept up
    to date; the same command again goes on with what is missing.

    Args:
        output_dir: folder of the results; a training's own folder is removed when it is measured.
        only: names of techniques, such as "ema, loss_name focal"; all by default. The plain recipe is always one. A
            name may also be a value, "channels 5", or several joined by " + ", and braces are the weights of another
            row: "channels 26, distill + teacher {channels 26}, baseline + epochs 1".
        seeds: of the trainings.
        epochs: of each training.
        dataset_dir: a cohort; by default the one that is simulated.
        processes: trainings at a time, which share the cores; 1 where a row has another's weights.
    """
    known = dict(techniques())
    names = [*dict.fromkeys([PLAIN, *(name.strip() for name in only.split(",") if name)])]
    known |= {name: _joined(name, known) for name in names}
    path = Path(output_dir, "results.json")
    cores = torch.get_num_threads()
    if not 1 <= processes <= cores:
        raise InputError(f"processes {processes}: expected 1 to {cores}, the threads that torch has here")
    if processes > 1 and any("{" in name for name in names):
        raise InputError("processes: a row that has another's weights waits for it; leave --processes out")
    threads = cores // processes
    settings = {
        "epochs": epochs,
        "dataset_dir": dataset_dir or "the default cohort",
        "git_revision": git_revision(),
        "processes": processes,
    }
    results = {
        "settings": settings,
        **machine(threads, "cuda" if torch.cuda.is_available() else "cpu"),
        "runs": {},
    }
    if path.is_file():
        earlier = read_json(path, "delete it to begin anew")
        if earlier["settings"] != settings:
            raise InputError(f"{path}: measured with {earlier['settings']}, not {settings}; give another --output_dir")
        results = earlier
    runs = results["runs"]
    wanted = product(dict.fromkeys(seeds if isinstance(seeds, tuple | list) else [seeds]), names if only else known)
    wanted = [(seed, name) for seed, name in wanted if str(seed) not in runs.setdefault(name, {})]

    def measure(row: tuple[int, str]) -> tuple[int, str, dict]:
        seed, name = row
        overlays, overrides = known[name]
        given = ["--dataset_dir", str(Path(dataset_dir).resolve())] if dataset_dir else []
        given += ["--seed", str(seed), "--epochs", str(epochs), *_filled(overrides, output_dir, seed)]
        return seed, name, _measure(overlays, given, _weights(output_dir, name, seed), threads)

    with ThreadPool(processes) as pool, tqdm(total=len(wanted), unit="training") as turns:
        for seed, name, run in pool.imap_unordered(measure, wanted):
            runs[name][str(seed)] = run
            for file_name, text in (("results.json", json.dumps(results, indent=4)), ("results.md", table(results))):
                with replace_file(Path(output_dir, file_name)) as file:
                    file.write(text)
            turns.set_description(name, refresh=False)
            turns.update()
    print(table(results), f"Tables and numbers: {output_dir}", sep="\n")


def techniques() -> Iterator[tuple[str, tuple[list[str], list[str]]]]:
    """By name: config files after ``train.json``, and overrides."""
    yield PLAIN, ([], [])
    for path in sorted(CONFIGS.glob("*.json")):
        if path.stem not in NOT_OVERLAYS | NOT_COMPARED:
            yield path.stem, ([str(path)], [])
    for path in sorted(MENUS.glob("*.json")):
        for name in list(json.loads(path.read_text()))[1:]:
            yield f"{path.stem}_name {name}", ([], [f"--{path.stem}_name", name])


def _joined(name: str, known: dict) -> tuple[list[str], list[str]]:
    """Config files and overrides of all that ``name`` joins by " + "."""
    overlays = {path.stem: path for path in CONFIGS.glob("*.json") if path.stem not in NOT_OVERLAYS}
    paths = [CONFIGS / "train.json", *overlays.values()]
    keys = {key for path in paths for key in json.loads(path.read_text()) if not key.endswith("_name")}
    files, overrides = [], []
    for part in name.split(" + "):
        key, _, value = part.partition(" ")
        if part in known:
            more = known[part]
        elif part in overlays:
            more = [str(overlays[part])], []
        elif value and key in keys:
            more = [], [f"--{key}", value]
        else:
            raise InputError(f"only {part}: no such technique; there are {', '.join(known)}, and values (channels 5)")
        files, overrides = [*files, *more[0]], [*overrides, *more[1]]
    return files, overrides


def _weights(output_dir: str, name: str, seed: int) -> Path:
    """Where those of a row and a seed are kept."""
    return Path(output_dir, "weights", f"{re.sub('[^a-zA-Z0-9.]+', '_', name).strip('_')}-{seed}.pt").resolve()


def _filled(overrides: list[str], output_dir: str, seed: int) -> list[str]:
    """The overrides with another row's name in braces replaced by its weights."""
    return [re.sub(r"\{(.+?)\}", lambda row: str(_weights(output_dir, row[1], seed)), value) for value in overrides]


def _measure(overlays: list[str], overrides: list[str], weights: Path, threads: int) -> dict:
    """Test DICE, parameters, seconds an epoch (median) and peak memory in MB of one training, or why there are none.

    Its ``weights`` are kept with their card.
    """
    with tempfile.TemporaryDirectory() as folder:
        common = [*overrides, "--output_dir", folder, "--report", "false"]
        train = [str(CONFIGS / "train.json"), *overlays]
        error, peak = _bundle("training", train, [*common, "--train#log#seconds", "true"], threads)
        if not error:
            error, _ = _bundle("evaluating", [*train, str(CONFIGS / "evaluate.json")], common, threads)
        if error:
            return {"failed": error}
        with open(f"{folder}/history.csv", newline="") as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        with open(f"{folder}/metrics.csv", newline="") as file:
            dice = [float(row["dice"]) for row in csv.DictReader(file)]
        weights.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".pt", ".json"):
            shutil.copyfile(Path(folder, f"model{suffix}"), weights.with_suffix(suffix))
    parameters = sum(p.numel() for p in Weights(str(weights)).network().parameters())
    measured = {"dice": statistics.fmean(dice), "seconds": statistics.median(seconds), "peak_mb": peak / 1e6}
    return {name: round(value, 4) for name, value in measured.items()} | {
        "parameters": parameters,
        "epochs": len(seconds),
    }


def _bundle(run_id: str, files: list[str], arguments: list[str], threads: int) -> tuple[str, int]:
    """Run a command of the bundle; return the last line of what went wrong, and the peak memory in bytes."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", str(files), *arguments]
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, cwd=CONFIGS.parent, stdout=log, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        last = ([line for line in log.read().splitlines() if line.strip()] or ["no message"])[-1]
    return (last[-200:] if process.returncode else ""), usage.ru_maxrss * 1024


def table(results: dict) -> str:
    """A row for each technique: mean and standard deviation over seeds, and ratios to the plain recipe's medians."""

    def values(name: str, key: str) -> list[float]:
        return [run[key] for run in results["runs"].get(name, {}).values() if key in run]

    def ratio(name: str, key: str) -> str:
        both = values(name, key), values(PLAIN, key)
        return f"{statistics.median(both[0]) / statistics.median(both[1]):.2f}" if all(both) else "-"

    settings = results["settings"]
    lines = [
        f"{results['device']}, {results['date']}; {settings['epochs']} epochs on {settings['dataset_dir']}, "
        f"{settings['processes']} at a time; test DICE, mean ± sd over seeds; time of an epoch and peak memory as "
        "ratios to the plain recipe's",
        "",
        "| technique | test DICE | seeds | parameters | time | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results["runs"].items():
        if not runs:
            continue
        dice = values(name, "dice")
        spread = f" ± {statistics.stdev(dice):.3f}" if len(dice) > 1 else ""
        failed = next((run["failed"] for run in runs.values() if "failed" in run), "-")
        shown = f"{statistics.fmean(dice):.3f}{spread}" if dice else failed
        size = next((f"{n:,}" for n in values(name, "parameters")), "-")
        lines.append(
            f"| {name} | {shown} | {len(dice)} | {size} | {ratio(name, 'seconds')} | {ratio(name, 'peak_mb')} |"
        )
    return "\n".join(lines) + "\n"
