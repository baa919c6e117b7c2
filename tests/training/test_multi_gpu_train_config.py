"""multi_gpu_train.json: torchrun's processes train as one, stop together and continue to the last bit."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import OVERLAYS, ROOT, TRAIN, bundle, train_here

MULTI_GPU = str(OVERLAYS / "multi_gpu_train.json")


def overlay(folder: Path, **more: object) -> str:
    """Random transforms, and a record of what each rank trains on: lines of its process and a scan."""
    folder.mkdir(parents=True, exist_ok=True)
    path, line = f"'{folder}/' + os.environ.get('RANK', '0')", "[str(os.getpid()), image.meta['filename_or_obj'], '']"
    record = f"(open({path} + '.txt', 'a').write(' '.join({line}) + chr(10)), image)[1]"
    transforms = [
        {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0},
        {"_target_": "RandLambdad", "keys": "image", "func": f"$lambda image: {record}"},
    ]
    (folder / "overlay.json").write_text(json.dumps({"train#random_transforms": transforms, **more}))
    return str(folder / "overlay.json")


def arguments(cohort_dir: Path, folder: Path, **overrides: object) -> list[str]:
    shared = {"dataset_dir": cohort_dir, "output_dir": folder / "eval", "channels": 2, "epochs": 2, "inner_fold": 1}
    pairs = {**shared, "accumulation_steps": 2, **overrides}  # 11 training scans, 5 validate
    return [str(part) for key, value in pairs.items() for part in (f"--{key}", value)]


def ranks(
    cohort_dir: Path, folder: Path, configs: list[str], restarts: int = 0, **overrides: object
) -> subprocess.Popen:
    """Two processes of a run; what they print goes to files."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--redirects=3"]
    command += [f"--max-restarts={restarts}", f"--log-dir={folder / 'logs'}"]
    command += ["-m", "monai.bundle", "run", "training", "--config_file", str(configs)]
    log = (folder / "torchrun.log").open("a")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += arguments(cohort_dir, folder, **overrides)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def printed(folder: Path, rank: int) -> str:
    """What a rank has printed in the first attempt of the last start, both streams."""
    last = max((folder / "logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return "".join(path.read_text() for path in sorted(last.glob(f"attempt_0/{rank}/std*.log")))


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "eval" / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_train_on_each_scan_once_and_as_one_does_with_the_doubled_batch(
    cohort_dir: Path, tmp_path: Path
) -> None:
    """Where the overlay's description says so: classes of equal weights, no normalization, an even number of scans."""
    one, two = tmp_path / "one", tmp_path / "two"
    plain = {"network_def#norm": None, "amp": False, "lesion_weight": 0.5, "inner_fold": 0}  # 10 scans, 6 validate
    started = ranks(cohort_dir, two, [TRAIN, overlay(two, **plain), MULTI_GPU], inner_fold=0)
    alone = arguments(cohort_dir, one, batch_size=2, inner_fold=0)
    result = bundle("training", "--config_file", f"['{TRAIN}','{overlay(one, **plain)}']", *alone)
    assert result.returncode == 0, result.stderr[-2000:]
    assert started.wait(240) == 0, printed(two, 0)[-2000:] + printed(two, 1)[-2000:]

    scans = [[line.split()[1] for line in (two / f"{rank}.txt").read_text().splitlines()] for rank in (0, 1)]
    expected = [line.split()[1] for line in (one / "0.txt").read_text().splitlines()]
    assert scans == [expected[::2], expected[1::2]]

    states = [torch.load(folder / "eval" / "checkpoint_last.pt", weights_only=True) for folder in (one, two)]
    assert list(states[0]["network"]) == list(states[1]["network"])
    for key, value in states[0]["network"].items():
        torch.testing.assert_close(states[1]["network"][key], value, atol=1e-6, rtol=0)
    for row, theirs in zip(history(two), history(one), strict=True):
        assert row.keys() == theirs.keys()
        assert {key: row[key] for key in row if key != "loss"} == pytest.approx(
            {key: theirs[key] for key in theirs if key != "loss"}, rel=1e-3
        )
    reports = [state["trainer"]["report"]["columns"] for state in states]
    assert reports[1]["avd"] == pytest.approx(reports[0]["avd"], rel=1e-3, nan_ok=True)  # by scan
    assert len(set(reports[0]["avd"])) == 6
    assert (two / "eval" / "report.html").is_file()
    assert "MeshNet: " in printed(two, 0)
    assert "epoch 1/2" in printed(two, 0)
    assert "epoch 1/2" not in printed(two, 1)  # one writes


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> int:
    """The process of rank 1, when it has begun its ``step``-th step of all starts."""
    while process.poll() is None:
        lines = (folder / "1.txt").read_text().splitlines() if (folder / "1.txt").exists() else []
        if len(lines) >= step:
            return int(lines[-1].split()[0])
        time.sleep(0.005)
    raise AssertionError(printed(folder, 0)[-2000:])


@pytest.mark.slow
def test_stopped_by_one_rank_s_signal_and_killed_with_another_it_continues_bit_identical(
    cohort_dir: Path, tmp_path: Path
) -> None:
    """With BatchNorm, dropout and bfloat16 as shipped."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"batch_size": 2, "learning_rate": 0.02, "dropout": 0.2, "epochs": 5, "resume": True, "report": False}
    settings |= {"spacing": [16.0] * 3, "spatial_size": [16] * 3}
    undisturbed = ranks(cohort_dir, whole, [TRAIN, overlay(whole), MULTI_GPU], **settings)
    assert undisturbed.wait(240) == 0, printed(whole, 0)[-2000:] + printed(whole, 1)[-2000:]

    configs, state = [TRAIN, overlay(cut), MULTI_GPU], cut / "eval" / "checkpoint_last.pt"
    stopped = ranks(cohort_dir, cut, configs, **settings)
    os.kill(wait_for_step(cut, 3, stopped), signal.SIGTERM)
    assert stopped.wait(100) != 0
    assert 0 < torch.load(state, weights_only=True)["trainer"]["iteration"] <= 4  # the first 2 epochs are 6 steps
    assert "--resume true continues" in printed(cut, 0)
    assert "exitcode  : 143" in (cut / "torchrun.log").read_text()
    assert "Traceback" not in printed(cut, 0) + printed(cut, 1)

    done = len((cut / "1.txt").read_text().splitlines())
    killed = ranks(cohort_dir, cut, configs, restarts=1, **settings)
    os.kill(wait_for_step(cut, done + 5, killed), signal.SIGKILL)
    assert killed.wait(240) == 0, printed(cut, 0)[-2000:]  # torchrun has started both again
    assert "Traceback" not in printed(cut, 0)
    assert len([line for line in printed(cut, 0).splitlines() if line.startswith("[rank")]) == 1  # that rank 1 is gone

    assert (cut / "eval" / "history.csv").read_bytes() == (whole / "eval" / "history.csv").read_bytes()
    states = [torch.load(folder / "eval" / "checkpoint_last.pt", weights_only=True) for folder in (whole, cut)]
    for name in ("network", "optimizer"):
        a, b = (json.dumps(state[name], default=lambda tensor: tensor.tolist()) for state in states)
        assert a == b
    models = [torch.load(folder / "eval" / "model.pt", weights_only=True) for folder in (whole, cut)]
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


@pytest.mark.slow
def test_without_torchrun_it_is_the_recipe(cohort_dir: Path, tmp_path: Path) -> None:
    networks = []
    for overlays in ((), ("multi_gpu_train",)):
        folder = tmp_path / str(len(overlays))
        train_here(cohort_dir, folder, *overlays, epochs=1, report=False, dropout=0.2, update_bn_scans=2)
        networks.append(torch.load(folder / "model.pt", weights_only=True))
    assert all(torch.equal(value, networks[1][key]) for key, value in networks[0].items())
