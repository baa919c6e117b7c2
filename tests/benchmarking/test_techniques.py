"""Techniques are measured beside the plain recipe; what is there already is not measured again."""

import json
import threading
from pathlib import Path

import pytest
import torch

from scripts.benchmarking import techniques
from scripts.benchmarking.techniques import PLAIN, benchmark_techniques, table
from scripts.common.errors import InputError


@pytest.mark.slow  # four commands of the bundle
def test_a_technique_and_the_plain_recipe_are_trained_and_tested(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = {"output_dir": str(tmp_path), "dataset_dir": str(cohort_dir), "epochs": 1, "seeds": (5,)}
    benchmark_techniques(only="loss_name dice", **arguments)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert list(runs) == [PLAIN, "loss_name dice"]
    for run in (runs[PLAIN]["5"], runs["loss_name dice"]["5"]):
        assert 0 <= run["dice"] < 1
        assert run["seconds"] > 0
        assert 300 < run["peak_mb"] < 20_000
        assert run["epochs"] == 1
        assert run["parameters"] == 56_194
    assert "| loss_name dice |" in capsys.readouterr().out

    monkeypatch.setattr(techniques, "_measure", lambda *_: {"failed": "should not be called"})
    benchmark_techniques(only="loss_name dice", **arguments)
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == runs
    with pytest.raises(InputError, match=r"measured with .*'epochs': 1.*give another --output_dir"):
        benchmark_techniques(only="", **{**arguments, "epochs": 2})


def test_the_table_has_means_deviations_and_ratios() -> None:
    def run(dice: float, seconds: float, peak: float) -> dict:
        return {"dice": dice, "seconds": seconds, "peak_mb": peak, "parameters": 56194, "epochs": 3}

    results = {
        "device": "a machine", "date": "today", "settings": {"epochs": 3, "dataset_dir": "a cohort", "processes": 2},
        "runs": {
            PLAIN: {"0": run(0.5, 2, 1000), "1": run(0.7, 4, 1000)},
            "ema": {"0": run(0.6, 6, 1500), "1": run(0.8, 3, 1500)},
            "noam": {},  # not measured yet
            "plateau": {"0": {"failed": "no validation"}},
        },
    }  # fmt: skip
    lines = table(results).splitlines()
    assert lines[-3:] == [
        "| plain recipe | 0.600 ± 0.141 | 2 | 56,194 | 1.00 | 1.00 |",
        "| ema | 0.700 ± 0.141 | 2 | 56,194 | 1.50 | 1.50 |",
        "| plateau | no validation | 0 | - | - | - |",
    ]
    assert "3 epochs on a cohort, 2 at a time" in lines[0]


def test_two_trainings_at_a_time_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=60)  # broken if one waits for the other to end
    threads = []

    def measure(overlays: list[str], overrides: list[str], weights: Path, share: int) -> dict:
        threads.append(share)
        both.wait()
        return {"failed": "-"}

    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(techniques, "_measure", measure)
    benchmark_techniques(output_dir=str(tmp_path), only="ema", seeds=(0, 7), processes=2)
    assert threads == [3, 3, 3, 3]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: sorted(runs) for name, runs in results["runs"].items()} == {PLAIN: ["0", "7"], "ema": ["0", "7"]}
    assert results["settings"]["processes"] == 2


def test_a_training_gets_its_share_of_the_threads_and_a_row_given_twice_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "threads $OMP_NUM_THREADS"\necho >> "$0.calls"\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(techniques.sys, "executable", str(python))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    benchmark_techniques(output_dir=str(tmp_path), only="ema,plain recipe,ema", seeds=(3, 3), processes=2)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert runs == {name: {"3": {"failed": "threads 3"}} for name in (PLAIN, "ema")}
    assert (tmp_path / "python.calls").read_text() == "\n\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 0}, "^processes 0: expected 1 to 6, the threads"),
        ({"processes": 7}, "^processes 7: expected 1 to 6, the threads"),
        (
            {"processes": 2, "only": "channels 26,distill + teacher {channels 26}"},
            "^processes: a row that has another's",
        ),
    ],
)
def test_a_number_of_processes_that_cannot_be_is_refused(
    given: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    with pytest.raises(InputError, match=message):
        benchmark_techniques(**given)


def test_a_student_is_measured_beside_its_teacher_of_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}
    monkeypatch.setattr(techniques, "_measure", lambda *run: given.update({run[2]: run[:2]}) or {"failed": "-"})
    names = ["channels 26", "distill + teacher {channels 26} + temperature 4"]
    benchmark_techniques(output_dir=str(tmp_path), only=",".join(names), seeds=(0, 7), epochs=1)
    assert len(given) == 6
    for seed in (0, 7):
        teacher = tmp_path / "weights" / f"channels_26-{seed}.pt"
        assert given[teacher] == ([], ["--seed", str(seed), "--epochs", "1", "--channels", "26"])
        overlays, overrides = given[tmp_path / "weights" / f"distill_teacher_channels_26_temperature_4-{seed}.pt"]
        assert [Path(path).name for path in overlays] == ["distill.json"]
        assert overrides[4:] == ["--teacher", str(teacher), "--temperature", "4"]


@pytest.mark.parametrize("name", ["chanels 5", "loss_name dcie", "ema + emma", "train"])
def test_a_misspelt_part_is_refused_before_anything_is_trained(name: str) -> None:
    with pytest.raises(InputError, match=f"^only {name.split(' + ')[-1]}: no such technique; there are"):
        benchmark_techniques(only=name)


def test_an_unknown_technique_is_refused_with_the_names() -> None:
    with pytest.raises(InputError, match=r"^only emma: no such technique; there are plain recipe, .*ema.*loss_name"):
        benchmark_techniques(only="emma")
