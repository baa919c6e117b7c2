"""Every overlay in configs/ and every entry of the menus trains, is stopped, goes on bit-identically, and evaluates."""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import EVALUATE, ROOT, TRAIN
from monai.bundle import ConfigParser

from scripts.common.menus import MENUS
from scripts.training.run_folder import RunFolder

# These are not overlays of a training.
OTHERS = {"train", "evaluate", "inference", "labels", "usual", "hpo", "hpo_augmentation", "benchmark", "metadata"}
OVERLAYS = sorted(path.stem for path in (ROOT / "configs").glob("*.json") if path.stem not in OTHERS)
ENTRIES = [(p.stem, name) for p in sorted(MENUS.glob("*.json")) for name in list(json.loads(p.read_text()))[1:]]
SMALLER = {  # whole they take minutes, and states of a gigabyte
    "unetr": {"network_def#hidden_size": 48, "network_def#mlp_dim": 96},
    "swin_unetr": {"network_def#feature_size": 12, "spatial_size": [64, 64, 64]},
    "mednext_s": {"network_def#init_filters": 8},
    "mednext_m": {"network_def#init_filters": 8},
    "dynunet": {"network_def#filters": [4, 8, 16, 32, 64]},
    "vnet": {"optimizer_name": "sgd"},
}
# What an overlay cannot do without, here made small.
NEEDED = {
    "finetune": {"epochs": 2, "warmup_fraction": 0.5},
    "simulated_patients": {"scans_per_epoch": 2, "inner_fold": 0},
    "fast_convergence": {"epochs": 2},
    "early_stopping": {"patience": 1},
}


@pytest.fixture(scope="module")
def few(cohort_dir: Path) -> Path:
    """A datalist with three scans to train on, and two each to validate and to test."""
    datalist = json.loads((cohort_dir / "datalist.json").read_text())
    kept: dict[str, list] = {"test": [], "validation": [], "training": []}
    for scan in datalist["training"]:
        kept["test" if scan["fold"] == 0 else "validation" if scan["inner_folds"][0] == 0 else "training"].append(scan)
    few = [*kept["test"][:2], *kept["validation"][:2], *kept["training"][:3]]
    path = cohort_dir / "few.json"
    path.write_text(json.dumps({**datalist, "training": few}))
    return path


def given(few: Path, folder: Path, names: tuple[str, ...]) -> dict:
    overrides = {
        "dataset_dir": str(few.parent),
        "datalist": str(few),
        "output_dir": str(folder),
        "channels": 2,
        "epochs": 2,
        "learning_rate": 0.02,
        "report": False,
        "resume": True,
    }
    for name in names:
        overrides |= NEEDED.get(name, {})
    if "finetune" in names:
        overrides |= {"init_weights": str(ROOT / "models" / "model_5.pt"), "spatial_size": [32, 32, 32]}
    return overrides


def run(files: list[str], overrides: dict) -> ConfigParser:
    """What ``python -m monai.bundle run`` does."""
    parser = ConfigParser()
    parser.read_config(files)
    parser.update(overrides)
    parser.parse()
    parser.get_parsed_content("config")
    torch.manual_seed(random.randrange(2**31))  # what a new process has instead
    try:
        parser.get_parsed_content("initialize")
        parser.get_parsed_content("run")
    finally:
        if EVALUATE not in files:
            parser.get_parsed_content("run_folder").release()
    return parser


def run_and_stop(files: list[str], overrides: dict) -> None:
    """A run that gets SIGTERM, as from a cluster, during its first iteration."""

    def begin_and_be_told_to_stop(self: RunFolder) -> None:
        begin(self)
        os.kill(os.getpid(), signal.SIGTERM)

    begin = RunFolder.begin
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "begin", begin_and_be_told_to_stop)
        with pytest.raises(SystemExit) as stopped:
            run(files, overrides)
    assert stopped.value.code == 128 + signal.SIGTERM


def results(folder: Path) -> dict:
    """All that a run leaves: each tensor of its state, and the history but for the seconds that epochs took."""
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    parts = {key: part for key, part in state.items() if key not in ("facts", "random", "trainer")}
    rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if name != "seconds"]
    return {**dict(leaves(parts)), "history": [[row[i] for i in kept] for row in rows]}


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}.{key}")
    else:
        yield name, value.numpy().tobytes() if torch.is_tensor(value) else str(value)


def train_stop_resume_evaluate(few: Path, tmp_path: Path, files: list[str], names: tuple[str, ...], **more) -> None:
    once, twice = tmp_path / "undisturbed", tmp_path / "resumed"
    run(files, given(few, once, names) | more)
    overrides = given(few, twice, names) | more
    run_and_stop(files, overrides)
    run(files, overrides)
    expected, found = results(once), results(twice)
    assert {key for key in {**expected, **found} if expected.get(key) != found.get(key)} == set()
    shutil.rmtree(once)
    table = run([*files, EVALUATE], overrides)
    assert 0 <= table.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"] <= 1
    assert (twice / "metrics.csv").is_file()


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay(name: str, few: Path, tmp_path: Path) -> None:
    if name == "tracking":
        for package in ("tensorboard", "mlflow"):
            pytest.importorskip(package, reason=f"tracking.json needs {package}")
    train_stop_resume_evaluate(few, tmp_path, [TRAIN, str(ROOT / "configs" / f"{name}.json")], (name,))


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_an_entry_of_a_menu(kind: str, name: str, few: Path, tmp_path: Path) -> None:
    if "unetr" in name:
        pytest.importorskip("einops", reason="MONAI's UNETR and SwinUNETR need einops")
    more = SMALLER.get(name, {}) | ({"epochs": 1} if kind == "network" else {})
    train_stop_resume_evaluate(few, tmp_path, [TRAIN], (), **{f"{kind}_name": name}, **more)


PAIRS = random.Random(2026).sample(list(combinations([name for name in OVERLAYS if name != "tracking"], 2)), 10)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_two_overlays_work_together(pair: tuple[str, str], few: Path, tmp_path: Path) -> None:
    train_stop_resume_evaluate(few, tmp_path, [TRAIN, *(str(ROOT / "configs" / f"{name}.json") for name in pair)], pair)


def test_soft_labels_a_loss_of_the_menu_and_its_value_in_validation_go_together(few: Path, tmp_path: Path) -> None:
    files = [TRAIN, *(str(ROOT / "configs" / f"{name}.json") for name in ("mix", "monitors"))]
    train_stop_resume_evaluate(few, tmp_path, files, (), loss_name="dice_ce", mixup_probability=1, cutmix_probability=0)
