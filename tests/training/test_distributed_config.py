"""distributed.json: torchrun's processes train as one, stop together and continue to the last bit."""

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
from conftest import OVERLAYS, ROOT, TRAIN, bundle
from monai.bundle import ConfigParser

DISTRIBUTED = str(OVERLAYS / "distributed.json")


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


def ranks(cohort_dir: Path, folder: Path, configs: list[str], **overrides: object) -> subprocess.Popen:
    """Two processes of a run; what they print goes to files."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--redirects=3"]
    command += [f"--log-dir={folder / 'logs'}", "-m", "monai.bundle", "run", "training", "--config_file", str(configs)]
    log = (folder / "torchrun.log").open("a")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command += arguments(cohort_dir, folder, **overrides)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def printed(folder: Path, rank: int) -> str:
    """What a rank has printed in the last start, both streams."""
    last = max((folder / "logs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    return "".join(path.read_text() for path in sorted(last.glob(f"attempt_0/{rank}/std*.log")))


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "eval" / "history.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_train_on_each_scan_once_and_as_one_does_with_the_doubled_batch(
    cohort_dir: Path, tmp_path: Path
) -> None:
    """Where scans do not share normalization; class weights, a last step with a single scan and all else may be."""
    one, two = tmp_path / "one", tmp_path / "two"
    plain = {"network_def#norm": None, "amp": False, "lesion_weight": 20.0}
    started = ranks(cohort_dir, two, [TRAIN, overlay(two, **plain), DISTRIBUTED])
    alone = arguments(cohort_dir, one, batch_size=2)
    result = bundle("training", "--config_file", f"['{TRAIN}','{overlay(one, **plain)}']", *alone)
    assert result.returncode == 0, result.stderr[-2000:]
    assert started.wait(120) == 0, printed(two, 0)[-2000:]

    scans = [[line.split()[1] for line in (two / f"{rank}.txt").read_text().splitlines()] for rank in (0, 1)]
    expected = [line.split()[1] for line in (one / "0.txt").read_text().splitlines()]
    assert [len(rank) for rank in scans] == [12, 12]
    for epoch in range(2):
        first, second = (rank[6 * epoch : 6 * epoch + 6] for rank in scans)
        assert [*first, *second[:-1]] == [*expected[11 * epoch :][:11:2], *expected[11 * epoch :][1:11:2]]
        assert len({*first, *second}) == 11
        assert second[-1] == second[0]  # counts for nothing

    states = [torch.load(folder / "eval" / "checkpoint_last.pt", weights_only=True) for folder in (one, two)]
    assert list(states[0]["network"]) == list(states[1]["network"])
    for key, value in states[0]["network"].items():
        torch.testing.assert_close(states[1]["network"][key], value, atol=1e-6, rtol=0)
    for row, theirs in zip(history(two), history(one), strict=True):
        assert row == pytest.approx(theirs, rel=1e-3)
        assert row["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    reports = [state["trainer"]["report"]["columns"] for state in states]
    assert reports[1]["avd"] == pytest.approx(reports[0]["avd"], rel=1e-3, nan_ok=True)  # by scan
    assert len(set(reports[0]["avd"])) == 5
    assert (two / "eval" / "report.html").is_file()
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
    undisturbed = ranks(cohort_dir, whole, [TRAIN, overlay(whole), DISTRIBUTED], **settings)
    assert undisturbed.wait(120) == 0, printed(whole, 0)[-2000:]

    configs, state = [TRAIN, overlay(cut), DISTRIBUTED], cut / "eval" / "checkpoint_last.pt"
    stopped = ranks(cohort_dir, cut, configs, **settings)
    os.kill(wait_for_step(cut, 3, stopped), signal.SIGTERM)
    assert stopped.wait(40) != 0
    assert 0 < torch.load(state, weights_only=True)["trainer"]["iteration"] <= 4  # the first 2 epochs are 6 steps
    assert "--resume true continues" in printed(cut, 0)
    assert "exitcode  : 143" in (cut / "torchrun.log").read_text()
    assert "Traceback" not in printed(cut, 0) + printed(cut, 1)

    done = len((cut / "1.txt").read_text().splitlines())
    killed = ranks(cohort_dir, cut, configs, **settings)
    os.kill(wait_for_step(cut, done + 5, killed), signal.SIGKILL)
    begin = time.monotonic()
    assert killed.wait(60) != 0
    assert time.monotonic() - begin < 30
    assert "Traceback" not in printed(cut, 0)
    assert [line for line in printed(cut, 0).splitlines() if line.startswith("[rank")] == [
        "[rank0]: another rank is gone, torchrun's report says which; what was saved is whole, the same command with "
        "--resume true continues"
    ]
    torch.load(state, weights_only=True)

    assert ranks(cohort_dir, cut, configs, **settings).wait(120) == 0, printed(cut, 0)[-2000:]
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
    for name, configs in (("plain", [TRAIN]), ("overlay", [TRAIN, DISTRIBUTED])):
        parser = ConfigParser()
        parser.read_config(configs)
        folder = str(tmp_path / name)
        parser.update({"dataset_dir": str(cohort_dir), "output_dir": folder, "channels": 2, "epochs": 1})
        parser.update({"report": False, "dropout": 0.2, "update_bn_scans": 2})
        parser.get_parsed_content("training")
        parser.get_parsed_content("run_folder").release()
        networks.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    assert all(torch.equal(value, networks[1][key]) for key, value in networks[0].items())
