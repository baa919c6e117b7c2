"""A run's folders are its own: no other run writes there, nothing is replaced unasked, and what ran is on record."""

import json
import re
import subprocess
import sys
from pathlib import Path

import monai
import pytest
import torch
from conftest import ROOT, TRAIN, bundle, recipe, train_here
from ignite.engine import Events
from training.processes import start

from scripts.common.errors import InputError
from scripts.training.run_folder import FORMAT, RunFolder

CONFIG = {"fold": 0, "epochs": 4, "channels": 2, "num_workers": 0, "optimizer": {"lr": 1, "betas": [0, 1]}}


def claim(folder: Path, cohort: str = "abc", config: dict = CONFIG, **options: object) -> RunFolder:
    run = RunFolder(str(folder / "eval"), str(folder / "models"), config, cohort, **options)
    run.claim()
    return run


def leave_state(folder: Path, iteration: int = 6, **changes: object) -> None:
    """What a killed run leaves: a state, and no lock."""
    run = claim(folder)
    run.begin()
    state = {
        "format": FORMAT,
        "facts": run.facts,
        "trainer": {"iteration": iteration, "epoch_length": 2, "max_epochs": 4},
        **changes,
    }
    torch.save(state, folder / "models" / "checkpoint_last.pt")
    run.release()


def test_of_processes_that_train_together_the_first_has_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = {"from": "rank 0"}
    for module in ("ignite.distributed", "ignite.distributed.utils"):
        monkeypatch.setattr(f"{module}.get_rank", lambda: 1)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects: objects.__setitem__(0, sent))
    run = claim(tmp_path)
    run.begin()
    assert run.state == sent
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["models/checkpoint_last.pt", "models/model.pt", "eval/history.csv"])
def test_results_are_not_replaced_unasked(tmp_path: Path, name: str) -> None:
    leave_state(tmp_path)
    (tmp_path / "models" / "checkpoint_last.pt").rename(tmp_path / "kept.pt")
    if name.endswith("last.pt"):
        (tmp_path / "kept.pt").rename(tmp_path / name)
    else:
        (tmp_path / name).write_text("mine")
    content = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=f"^{tmp_path}/{name}: .*; --resume true continues it, --overwrite true repl"):
        claim(tmp_path)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize(
    ("iteration", "words"), [(3, "a run is there that stopped after epoch 1.5 of 4;"), (8, "a finished run is there;")]
)
def test_the_same_command_after_a_crash_says_that_it_can_continue(tmp_path: Path, iteration: int, words: str) -> None:
    leave_state(tmp_path, iteration)
    with pytest.raises(InputError, match=words):
        claim(tmp_path)


def test_weights_elsewhere_are_one_runs_too(tmp_path: Path) -> None:
    shared = tmp_path / "weights" / "best.pt"
    first = claim(tmp_path / "a", model_path=str(shared))
    with pytest.raises(InputError, match=f"^{shared.parent}: another run is writing there; give this one its own"):
        claim(tmp_path / "b", model_path=str(shared))
    first.release()
    claim(tmp_path / "c", model_path=str(shared.with_name("other.pt"))).release()
    shared.write_text("of the first")
    with pytest.raises(InputError, match=f"^{shared}: results of an earlier run are there; --resume true continues"):
        claim(tmp_path / "d", model_path=str(shared))
    claim(tmp_path / "e", model_path=str(shared), overwrite=True).begin()
    assert not shared.exists()


@pytest.mark.slow
def test_a_run_whose_weights_are_elsewhere_goes_on(cohort_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights" / "best.pt"
    options = {"epochs": 2, "report": False, "resume": True, "model_path": str(path)}
    with pytest.raises(SystemExit):
        train_here(cohort_dir, tmp_path / "run", stop=Events.EPOCH_STARTED(once=2), **options)
    assert path.is_file()
    train_here(cohort_dir, tmp_path / "run", **options)
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3


def test_weights_are_found_again_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^model_path best.pth: expected a name that ends with .pt$"):
        claim(tmp_path, model_path="best.pth")


def test_a_run_that_left_no_results_is_no_obstacle(tmp_path: Path) -> None:
    leave_state(tmp_path)
    (tmp_path / "models" / "checkpoint_last.pt").unlink()
    assert claim(tmp_path).state is None


LEFT = ["checkpoint_failed.pt", "checkpoint_last.pt", "history.csv", "model.json", "model.pt", "report.html"]


def test_overwriting_costs_nothing_before_the_first_step_and_leaves_nothing_of_the_old_run_after_it(
    tmp_path: Path,
) -> None:
    leave_state(tmp_path)
    for name in LEFT:
        if name != "checkpoint_last.pt":
            (tmp_path / ("eval" if name in ("history.csv", "report.html") else "models") / name).write_text("old")
    (tmp_path / "eval" / "mine.txt").write_text("mine")
    run = claim(tmp_path, overwrite=True)
    assert run.state is None
    left = sorted(path.name for path in tmp_path.rglob("*.*") if not path.name.startswith("."))
    assert left == sorted([*LEFT, "mine.txt", "run.json"])
    run.begin()
    assert [p.name for p in (tmp_path / "models").iterdir()] == [".lock"]
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == [".lock", "mine.txt", "run.json"]


def test_resuming_where_nothing_is_starts_anew(tmp_path: Path) -> None:
    assert claim(tmp_path, resume=True).state is None


def test_resuming_a_run_that_was_killed_before_its_first_state_starts_anew(tmp_path: Path) -> None:
    leave_state(tmp_path)
    (tmp_path / "models" / "checkpoint_last.pt").rename(tmp_path / "models" / "model.pt")
    with pytest.raises(InputError, match="results of an earlier run are there"):
        claim(tmp_path)
    assert claim(tmp_path, resume=True).state is None


@pytest.mark.parametrize("name", ["models/model.pt", "eval/history.csv"])
def test_resuming_replaces_nothing_of_somebody_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="results of an earlier run are there"):
        claim(tmp_path, resume=True)
    assert (tmp_path / name).read_text() == "mine"


def test_resuming_keeps_the_record_and_adds_to_it(tmp_path: Path) -> None:
    leave_state(tmp_path)
    first = json.loads((tmp_path / "eval" / "run.json").read_text())
    run = claim(tmp_path, resume=True)
    assert run.state["trainer"]["iteration"] == 6
    run.begin()
    record = json.loads((tmp_path / "eval" / "run.json").read_text())
    assert [entry["from_iteration"] for entry in record.pop("continued")] == [6]
    assert record == {key: value for key, value in first.items() if key != "continued"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 5}, "channels is 2 there and 5 here"),
        ({"optimizer": {"lr": 1, "betas": [0, 2]}}, "optimizer#betas is [0, 1] there and [0, 2] here"),
        ({"loss_def": {"_target_": "DiceLoss"}}, "loss_def is None there and {'_target_': 'DiceLoss'} here"),
        ({"epochs": 9, "fold": 2}, "fold is 0 there and 2 here; epochs is 4 there and 9 here"),
    ],
)
def test_the_state_of_another_run_is_refused_with_the_difference(tmp_path: Path, change: dict, words: str) -> None:
    leave_state(tmp_path)
    with pytest.raises(InputError, match=re.escape(f"checkpoint_last.pt: a state of another run ({words})")):
        claim(tmp_path, config={**CONFIG, **change}, resume=True)


def test_a_state_of_other_scans_is_refused(tmp_path: Path) -> None:
    leave_state(tmp_path)
    with pytest.raises(InputError, match=r"the scans, .* or the weights to start from differ \(fingerprint abc\)"):
        claim(tmp_path, cohort="xyz", resume=True)


def test_another_loss_augmentation_or_schedule_is_not_resumed_over(cohort_dir: Path, tmp_path: Path) -> None:
    def config(**change: object) -> dict:
        parser = recipe(**change)
        parser.parse()
        return parser.get()

    leave_state(tmp_path, facts=RunFolder("x", "x", config(), "abc").facts)
    for change in (
        {"loss_def": {"_target_": "DiceLoss"}},
        {"train#random_transforms": [{"_target_": "RandFlipd", "keys": ["image", "label"]}]},
        {"lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 3}},
        {"optimizer#_target_": "torch.optim.SGD"},
    ):
        with pytest.raises(InputError, match=f"a state of another run .*{next(iter(change)).split('#')[-1]}"):
            claim(tmp_path, config=config(**change), resume=True)
    changed = {"resume": True, "num_workers": 5, "device": "cpu", "output_dir": "elsewhere", "cache": "disk"}
    assert claim(tmp_path, config={**config(), **changed}, resume=True).state is not None


def test_other_versions_and_hardware_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = RunFolder("x", "x", CONFIG, "abc").facts
    leave_state(tmp_path, facts={**facts, "versions": {**facts["versions"], "monai": "1.0"}})
    claim(tmp_path, config={**CONFIG, "num_workers": 3, "resume": True}, resume=True)
    assert caplog.messages == [f"monai was 1.0 when the state was saved and is {monai.__version__} now"]


@pytest.mark.parametrize(("output_dir", "ckpt_dir"), [("", "x"), ("x", " ")])
def test_an_empty_folder_name_spills_nowhere(output_dir: str, ckpt_dir: str) -> None:
    with pytest.raises(InputError, match=r"^(output_dir|ckpt_dir): is empty; give a folder$"):
        RunFolder(output_dir, ckpt_dir, CONFIG, "abc")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a torch checkpoint"),
        (b"PK\x03\x04", "not a torch checkpoint"),
        (None, "not a training state of this version"),
    ],
)
def test_a_file_that_is_no_state_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    leave_state(tmp_path, format=FORMAT + 1)
    if content is not None:
        (tmp_path / "models" / "checkpoint_last.pt").write_bytes(content)
    with pytest.raises(InputError, match=f"checkpoint_last.pt: {words}") as error:
        claim(tmp_path, resume=True)
    assert len(str(error.value).splitlines()) == 1


HOLDER = "from pathlib import Path; from tests.training.test_run_folder import claim; import sys, time; \
run = claim(Path(sys.argv[1])); print('there', flush=True); time.sleep(60)"


@pytest.mark.slow
def test_a_folder_in_use_is_refused_until_its_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.path[:0] = ['.', 'tests']; " + HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    with pytest.raises(InputError, match=f"^{tmp_path}/models: another run is writing there; give this one its own"):
        claim(tmp_path)
    process.kill()
    process.wait()
    claim(tmp_path)


def test_a_broken_record_is_one_line(tmp_path: Path) -> None:
    leave_state(tmp_path)
    (tmp_path / "eval" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: not JSON"):
        claim(tmp_path, resume=True).begin()


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^/proc/models: cannot be written \(.*\); give another folder$"):
        claim(Path("/proc"))


@pytest.mark.slow
def test_ten_runs_at_once_under_one_root_keep_apart(cohort_dir: Path, tmp_path: Path) -> None:
    options = {"config_file": TRAIN, "dataset_dir": str(cohort_dir), "channels": 2, "epochs": 1, "report": False}
    options |= {"spacing": [16.0] * 3, "spatial_size": [16] * 3}
    folders = [str(tmp_path / f"run{seed}") for seed in range(10)]
    runs = [start({**options, "seed": i % 5, "output_dir": path, "ckpt_dir": path}) for i, path in enumerate(folders)]
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0] * 10
    weights = [torch.load(tmp_path / f"run{seed}" / "model.pt", weights_only=True) for seed in range(10)]
    for seed in range(5):  # the same as the other run with that seed, and as no other
        same = [all(torch.equal(weights[seed][key], other[key]) for key in other) for other in weights]
        assert [i for i, equal in enumerate(same) if equal] == [seed, seed + 5]


@pytest.mark.slow
def test_the_command_again_is_refused_and_resumed(cohort_dir: Path, tmp_path: Path) -> None:
    folders = ["--dataset_dir", cohort_dir, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models"]
    command = ["training", "--config_file", TRAIN, *folders, "--channels", 2, "--epochs", 1, "--report", False]
    assert bundle(*command).returncode == 0
    weights = (tmp_path / "models" / "model.pt").read_bytes()
    again = bundle(*command)
    assert again.returncode == 1
    assert "a finished run is there; --resume true" in again.stderr.splitlines()[-1]
    assert bundle(*command, "--resume", "true").returncode == 0
    assert (tmp_path / "models" / "model.pt").read_bytes() == weights
