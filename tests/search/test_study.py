"""A search is its study: every trial is train.json with a file of overrides, and none is lost or run twice."""

import csv
import glob
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from conftest import ROOT, TRAIN, bundle
from optuna.trial import TrialState

from scripts.common.errors import InputError
from scripts.search.study import Search, counts, hpo

HPO = str(ROOT / "configs" / "hpo.json")
# Two short epochs of the smallest networks: what is tested is the search.
SMALL = {"min_epochs": 1, "max_epochs": 3, "n_trials": 3, "space#channels#low": 1, "space#channels#high": 3}


def command(cohort_dir: Path, folder: Path, **flags: object) -> list[str]:
    flags = {"dataset_dir": cohort_dir, "output_dir": folder, **SMALL, **flags}
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    return [sys.executable, str(ROOT / "scripts" / "hpo.py"), *arguments]


def start(*arguments: object, log: Path, **flags: object) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = log.open("a")
    return subprocess.Popen(command(*arguments, **flags), cwd=log.parent, env=environment, stdout=out, stderr=out)


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="default", storage=f"sqlite:///{folder}/study.db")


@pytest.fixture(scope="module")
def coarse_dir(tmp_path_factory: pytest.TempPathFactory, cohort_dir: Path) -> Path:
    """The small cohort on a grid of 16x16x16 voxels of 16 mm."""
    path = tmp_path_factory.mktemp("coarse") / "cohort"
    shutil.copytree(cohort_dir, path)
    datalist = json.loads((path / "datalist.json").read_text())
    datalist.update({"spacing": [16, 16, 16], "spatial_size": [16, 16, 16]})
    (path / "datalist.json").write_text(json.dumps(datalist))
    return path


@pytest.fixture(scope="module")
def searched(coarse_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A search by the command, from another directory, that may not read the outer test fold."""
    root = tmp_path_factory.mktemp("searched")
    shutil.copytree(coarse_dir, root / "cohort")
    for scan in json.loads((coarse_dir / "datalist.json").read_text())["training"]:
        if scan["fold"] == 0:
            (root / "cohort" / scan["image"]).unlink()
            (root / "cohort" / scan["label"]).unlink()
    process = start(root / "cohort", root / "hpo", log=root / "log", n_trials=5)
    assert process.wait() == 0, (root / "log").read_text()[-2000:]
    return {"root": root, "folder": root / "hpo", "study": study_of(root / "hpo"), "log": (root / "log").read_text()}


def test_the_outer_test_fold_is_never_read(searched: dict) -> None:
    scans = json.loads((searched["root"] / "cohort" / "datalist.json").read_text())["training"]
    held_out = [scan for scan in scans if scan["fold"] == 0]
    assert held_out
    assert not any((searched["root"] / "cohort" / scan["image"]).exists() for scan in held_out)
    assert all(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in searched["study"].trials)


def history(folder: Path) -> list[dict]:
    return list(csv.DictReader((folder / "history.csv").open()))


def test_a_value_is_the_mean_of_the_inner_folds_at_that_epoch(searched: dict) -> None:
    for trial in searched["study"].trials:
        folds = [history(searched["folder"] / "trials" / f"{trial.number:04d}" / f"inner_fold-{k}") for k in (0, 1, 2)]
        assert {len(fold) for fold in folds} == {max(trial.intermediate_values)}  # all advanced to the same epoch
        for epoch, value in trial.intermediate_values.items():
            assert value == pytest.approx(sum(float(fold[epoch - 1]["val_mean_dice"]) for fold in folds) / 3)
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[3]  # of the last epoch, not of the luckiest


def test_a_pruned_trial_stops_at_a_rung(searched: dict) -> None:
    pruned = [t for t in searched["study"].trials if t.state == TrialState.PRUNED]
    assert pruned
    assert {max(t.intermediate_values) for t in pruned} == {1}  # reduction factor 3 from epoch 1: 3 is the end
    assert all(t.state == TrialState.COMPLETE for t in searched["study"].trials if max(t.intermediate_values) == 3)


@pytest.mark.slow
def test_the_printed_command_trains_the_winner_as_the_search_did(searched: dict) -> None:
    line = next(line for line in searched["log"].splitlines() if line.startswith("python -m monai.bundle run training"))
    result = subprocess.run(
        line.replace("python", sys.executable, 1), shell=True, cwd=searched["root"], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    best = searched["study"].best_trial
    inner_fold = searched["folder"] / "trials" / f"{best.number:04d}" / "inner_fold-0"
    assert history(searched["folder"] / "best") == history(inner_fold)
    assert json.loads((inner_fold / "run.json").read_text())["config"]["channels"] == best.params["channels"]


def test_trials_that_ended_keep_their_record_and_not_their_weights(searched: dict) -> None:
    names = {path.name for path in (searched["folder"] / "trials" / "0000").rglob("*") if path.is_file()}
    assert {"overrides.json", "log.txt", "history.csv", "run.json"} <= names
    assert not any(name.endswith(".pt") for name in names)


def test_a_grid_is_searched_once(coarse_dir: Path, tmp_path: Path) -> None:
    import monai.bundle

    grid = {"channels": [1, 2], "learning_rate": [0.01], "weight_decay": [1e-4], "background_weight": [0.5]}
    grid["warmup_fraction"] = [0.02]
    flags = {**SMALL, "max_epochs": 1, "dataset_dir": str(coarse_dir), "output_dir": str(tmp_path / "hpo")}
    for _ in range(2):  # the second time there is nothing left
        monai.bundle.run(config_file=HPO, sampler="grid", **{**flags, "samplers#grid#search_space": grid})
    assert sorted(trial.params["channels"] for trial in study_of(tmp_path / "hpo").trials) == [1, 2]


def test_an_overlay_is_what_differs(coarse_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({**SMALL, "max_epochs": 1, "n_trials": 1, "sampler": "random"}))
    shutil.copytree(coarse_dir, tmp_path / "cohort")
    monkeypatch.chdir(tmp_path)
    hpo(overlay=str(overlay), dataset_dir="cohort", output_dir="hpo")
    overrides = json.loads((tmp_path / "hpo" / "trials" / "0000" / "overrides.json").read_text())
    assert overrides["epochs"] == 1
    assert overrides["dataset_dir"] == str(tmp_path / "cohort")  # the file works from any directory


def test_results_are_a_table_and_pictures(searched: dict) -> None:
    rows = list(csv.DictReader((searched["folder"] / "trials.csv").open()))
    assert [int(row["number"]) for row in rows] == [0, 1, 2, 3, 4]
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    assert {"params_channels", "params_learning_rate", "user_attrs_overrides", "value"} <= set(rows[0])
    for name in ("learning_curves", "optimization_history", "slice"):
        assert (searched["folder"] / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in searched["log"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_trials_and_continuing_is_no_different(
    coarse_dir: Path, tmp_path: Path, searched: dict
) -> None:
    for n_trials in (2, 5):  # stopped after two, then continued
        assert start(coarse_dir, tmp_path / "hpo", log=tmp_path / "log", n_trials=n_trials).wait() == 0
    ours, theirs = study_of(tmp_path / "hpo").trials, searched["study"].trials
    assert [t.params for t in ours] == [t.params for t in theirs]
    assert [t.intermediate_values for t in ours] == [t.intermediate_values for t in theirs]
    assert [t.state for t in ours] == [t.state for t in theirs]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_the_trial_is_continued_and_ends_as_if_nothing_had_happened(
    coarse_dir: Path, tmp_path: Path, searched: dict, number: int
) -> None:
    log = tmp_path / "log"
    process = start(coarse_dir, tmp_path / "hpo", log=log, n_trials=1)
    wait_for(tmp_path / "hpo" / "trials" / "0000" / "inner_fold-0" / "checkpoint_last.pt", process)
    process.send_signal(number)
    assert process.wait() == 128 + number, log.read_text()
    assert "Traceback" not in log.read_text()
    stopped, waiting = study_of(tmp_path / "hpo").trials
    assert (stopped.state, waiting.state) == (TrialState.FAIL, TrialState.WAITING)
    assert stopped.user_attrs["reason"] == "interrupted"
    assert not counts(stopped)
    assert start(coarse_dir, tmp_path / "hpo", log=log, n_trials=1).wait() == 0
    continued = study_of(tmp_path / "hpo").trials[1]
    assert continued.params == stopped.params
    assert continued.intermediate_values == searched["study"].trials[0].intermediate_values
    assert [p.name for p in (tmp_path / "hpo" / "trials").iterdir()] == ["0000"]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)


def search(coarse_dir: Path, folder: Path, **overrides: object) -> list[str]:
    """The lines with which a search ends in this process."""
    import monai.bundle

    flags = {"dataset_dir": str(coarse_dir), "output_dir": str(folder), **SMALL, **overrides}
    with pytest.raises(InputError) as error:
        monai.bundle.run(config_file=HPO, **flags)
    return str(error.value).splitlines()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ({"n_trial": 3}, "n_trial: nothing reads this key, did you mean n_trials?"),
        ({"n_trials": 0}, "n_trials 0: not allowed"),
        ({"sampler": "tpee"}, "sampler 'tpee': not allowed"),
        ({"pruner": "hyperband"}, "pruner 'hyperband': not allowed"),
        ({"storage": "study.db"}, "storage 'study.db': not allowed"),
        ({"overrides": {"epoch": 3}}, "epoch: nothing reads this key, did you mean epochs?"),
        ({"overrides": {"dropout": 2}}, "dropout 2: not allowed"),
        ({"space#channel": {"_target_": "optuna.Trial.suggest_int", "_mode_": "callable", "low": 1, "high": 2}},
         "channel: nothing reads this key, did you mean channels?"),
        ({"space#channels#low": 0}, "channels 0: not allowed"),
        ({"space#dropout": {"_target_": "optuna.Trial.suggest_float", "_mode_": "callable", "low": 0, "high": 3}},
         "dropout 3: not allowed"),
        ({"space#dropout": {"_target_": "optuna.Trial.suggest_float", "_mode_": "callable", "low": 0}},
         "space#dropout: expected a function with low and high, or choices"),
        ({"min_epochs": 5}, "min_epochs 5: more than max_epochs, which is 3"),
        ({"storage": "sqlite:////nowhere/study.db"}, "storage sqlite:////nowhere/study.db: cannot be used ("),
        ({"storage": "oracul://me:secret@host/db"}, "storage oracul://me:***@host/db: cannot be used ("),
        ({"storage": "postgresql+psycopg://me:secret@localhost:1/db"}, "storage postgresql+psycopg://me:***@localho"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_the_first_trial(
    coarse_dir: Path, tmp_path: Path, overrides: dict, line: str
) -> None:
    (said,) = search(coarse_dir, tmp_path / "hpo", **overrides)
    assert said.startswith(line)
    assert "secret" not in said
    assert not (tmp_path / "hpo" / "trials").exists()


def test_a_study_that_began_with_other_settings_is_refused(coarse_dir: Path, searched: dict) -> None:
    (said,) = search(coarse_dir, searched["folder"], max_epochs=4, **{"space#channels#high": 3})
    assert said.startswith("study default: began with other settings (overrides was {")


def test_failures_have_their_reason_no_value_and_stop_the_search_when_alike(coarse_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    shutil.copytree(coarse_dir, tmp_path / "cohort", dirs_exist_ok=True)
    scans = json.loads((coarse_dir / "datalist.json").read_text())["training"]
    broken = next(scan for scan in scans if scan["fold"] != 0)
    (tmp_path / "cohort" / broken["image"]).write_text("no scan")
    said = search(tmp_path / "cohort", tmp_path / "hpo", n_trials=9)
    path = tmp_path / "cohort" / broken["image"]
    assert said[0].startswith(f"3 trials in a row failed alike, the last one so: {path}: not a readable NIfTI image")
    trials = study_of(tmp_path / "hpo").trials
    assert [(t.state, t.value) for t in trials] == [(TrialState.FAIL, None)] * 3
    assert all(t.user_attrs["reason"].startswith(str(path)) for t in trials)


def test_a_trial_with_an_infinite_loss_fails_and_the_search_goes_on(coarse_dir: Path, tmp_path: Path) -> None:
    import monai.bundle

    monai.bundle.run(
        config_file=HPO, dataset_dir=str(coarse_dir), output_dir=str(tmp_path / "hpo"), sampler="grid",
        **{**SMALL, "max_epochs": 1, "n_trials": 2, "space#learning_rate#high": 1e30, "space#learning_rate#low": 1e-3,
           "samplers#grid#search_space": {"channels": [2], "learning_rate": [1e-3, 1e30], "weight_decay": [1e-4],
                                          "background_weight": [0.5], "warmup_fraction": [0.02]}},
    )  # fmt: skip
    states = {t.params["learning_rate"]: t for t in study_of(tmp_path / "hpo").trials}
    assert states[1e-3].state == TrialState.COMPLETE
    assert states[1e30].state == TrialState.FAIL
    assert states[1e30].value is None
    assert "the loss is nan" in states[1e30].user_attrs["reason"]


def test_a_journal_is_a_storage_too(coarse_dir: Path, tmp_path: Path) -> None:
    import monai.bundle

    flags = {**SMALL, "max_epochs": 1, "n_trials": 1, "dataset_dir": str(coarse_dir), "output_dir": str(tmp_path)}
    monai.bundle.run(config_file=HPO, storage=f"journal://{tmp_path}/shared/journal.log", **flags)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "shared" / "journal.log"))
    study = optuna.load_study(study_name="default", storage=optuna.storages.JournalStorage(backend))
    assert [t.state for t in study.trials] == [TrialState.COMPLETE]


def survivors(values: list[list[float]], rungs: list[int], factor: int) -> list[list[int]]:
    """Who passes each rung when trials arrive one after another: the top 1/factor of those that have reached it."""
    reached: list[list[float]] = [[] for _ in rungs]
    passed: list[list[int]] = [[] for _ in rungs]
    for number, value in enumerate(values):
        for i, epoch in enumerate(rungs):
            reached[i].append(value[epoch - 1])
            best = sorted(reached[i], reverse=True)[: max(1, len(reached[i]) // factor)]
            if value[epoch - 1] < best[-1]:
                break
            passed[i].append(number)
    return passed


@pytest.mark.parametrize(("factor", "rungs"), [(2, [15, 30]), (3, [15, 45]), (4, [15])])
def test_asha_keeps_the_survivors_that_its_definition_says(factor: int, rungs: list[int]) -> None:
    """15 to 50 epochs, a known order: the rungs of docs/search.md."""
    import monai.bundle

    workflow = monai.bundle.ConfigWorkflow(HPO, min_epochs=15, max_epochs=50, reduction_factor=factor)
    workflow.initialize()
    pruner = workflow.parser.get_parsed_content("pruners#asha")
    study = optuna.create_study(direction="maximize", pruner=pruner)
    order = [(7 * number) % 30 for number in range(30)]
    values = [[rank + epoch / 100 for epoch in range(1, 51)] for rank in order]

    def objective(trial: optuna.Trial) -> float:
        for epoch, value in enumerate(values[trial.number], 1):
            trial.report(value, step=epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=30)
    last = {t.number: max(t.intermediate_values) for t in study.trials}
    assert {epoch for epoch in last.values() if epoch < 50} <= set(rungs)
    for epoch, expected in zip(rungs, survivors(values, rungs, factor), strict=True):
        assert [number for number in range(30) if last[number] > epoch] == expected


def test_every_key_of_the_recipe_can_be_in_the_space(coarse_dir: Path, tmp_path: Path) -> None:
    kinds = [("suggest_int", 1, 3), ("suggest_float", 0.0, 0.5)]
    recipe = json.loads(Path(TRAIN).read_text())
    for name in ("channels", "batch_size", "dropout", "label_smoothing", "seed", "accumulation_steps"):
        kind, low, high = kinds[isinstance(recipe[name], float)]
        suggest = {"_target_": f"optuna.Trial.{kind}", "_mode_": "callable", "low": low, "high": high}
        parser = monai_parser(space={name: suggest}, output_dir=str(tmp_path), dataset_dir=str(coarse_dir))
        assert isinstance(parser.get_parsed_content("search"), Search)
        (tmp_path / "study.db").unlink()


def monai_parser(**overrides: object) -> object:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(HPO)
    parser.update(overrides)
    parser.parse()
    return parser


@pytest.mark.slow
def test_the_search_is_a_bundle_run_as_well(coarse_dir: Path, tmp_path: Path) -> None:
    flags = [part for key, value in {**SMALL, "n_trials": 1, "max_epochs": 1}.items() for part in (f"--{key}", value)]
    result = bundle("--config_file", HPO, "--dataset_dir", coarse_dir, "--output_dir", tmp_path / "hpo", *flags)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "To train with the best one:" in result.stdout


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, run by an ordinary user on a free port."""
    found = shutil.which("initdb") or next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))), None)
    if found is None:
        pytest.skip("no PostgreSQL server on this machine: initdb is not found")
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="meshnet-postgres-", dir="/tmp"))
    if user:
        shutil.chown(folder, "nobody", "nogroup")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # the real folder: a link elsewhere may lead to a wrapper that switches users
    binaries = Path(found).resolve().parent
    log = (folder.parent / f"{folder.name}.log").open("w")
    make = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "meshnet", "-A", "trust", "--no-sync"]
    subprocess.run(make, check=True, stdout=log, stderr=log, cwd="/", **user)
    serve = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
    server = subprocess.Popen([*serve, "-c", "listen_addresses=127.0.0.1"], stdout=log, stderr=log, cwd="/", **user)
    url = f"postgresql+psycopg://meshnet@127.0.0.1:{port}/postgres"
    engine = sqlalchemy.create_engine(url)
    for _ in range(300):
        try:
            engine.connect().close()
            break
        except sqlalchemy.exc.OperationalError:
            assert server.poll() is None, Path(log.name).read_text()
            time.sleep(0.1)
    engine.dispose()
    yield url
    server.send_signal(signal.SIGINT)
    server.wait(30)
    shutil.rmtree(folder)
    Path(log.name).unlink()


@pytest.mark.postgres
@pytest.mark.slow
def test_two_workers_are_one_search_and_lose_or_repeat_no_trial(
    coarse_dir: Path, tmp_path: Path, postgres: str
) -> None:
    flags = {"storage": postgres, "study_name": "two", "n_trials": 8}
    workers = [start(coarse_dir, tmp_path / "hpo", log=tmp_path / f"log{i}", **flags) for i in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0], (tmp_path / "log0").read_text()[-2000:]
    trials = optuna.load_study(study_name="two", storage=postgres).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert sum(map(counts, trials)) == len(trials)  # none is left running or waiting
    assert 8 <= len(trials) <= 9  # both may have seen room for one more
    assert len({json.dumps(trial.params) for trial in trials}) == len(trials)
    assert len(list((tmp_path / "hpo" / "trials").iterdir())) == len(trials)
    begun = sorted((trial.datetime_start, trial.datetime_complete) for trial in trials)
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(begun))  # they did work at once


@pytest.mark.postgres
@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_retried_by_the_other_from_where_it_was(
    coarse_dir: Path, tmp_path: Path, postgres: str
) -> None:
    flags = {"storage": postgres, "study_name": "killed", "n_trials": 3, "heartbeat_interval": 1, "pruner": "none"}
    flags["max_epochs"] = 12
    doomed = start(coarse_dir, tmp_path / "hpo", log=tmp_path / "doomed", **flags)
    wait_for(tmp_path / "hpo" / "trials" / "0000" / "overrides.json", doomed)
    other = start(coarse_dir, tmp_path / "hpo", log=tmp_path / "other", **flags)
    wait_for(tmp_path / "hpo" / "trials" / "0000" / "inner_fold-2" / "checkpoint_last.pt", doomed)
    doomed.kill()
    doomed.wait()
    assert len(history(tmp_path / "hpo" / "trials" / "0000" / "inner_fold-0")) < 12
    assert other.wait() == 0, (tmp_path / "other").read_text()[-2000:]
    killed, *rest = optuna.load_study(study_name="killed", storage=postgres).trials  # trial 0 was the doomed one's
    assert (killed.state, killed.value) == (TrialState.FAIL, None)
    assert not counts(killed)
    (retried,) = [t for t in rest if t.system_attrs.get("failed_trial") == 0]
    assert retried.state == TrialState.COMPLETE
    assert retried.params == killed.params
    assert sorted(retried.intermediate_values) == list(range(1, 13))
    assert retried.intermediate_values | killed.intermediate_values == retried.intermediate_values
    assert sum(map(counts, rest)) == 3
    record = json.loads((tmp_path / "hpo" / "trials" / "0000" / "inner_fold-0" / "run.json").read_text())
    assert len(record["continued"]) == 1  # not from the beginning
