"""Every overlay in configs/ and every entry of the menus trains, is stopped, goes on bit-identically, and evaluates."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import EVALUATE, MENUS, NOT_OF_TRAIN, OVERLAYS, ROOT, checked, refused
from ignite.engine import Engine
from monai.bundle import ConfigParser

from scripts.networks.meshnet import MeshNet
from scripts.training.training_state import TrainingState

KEYS = {"instance_norm": {"norm": "instance"}, "no_decay": {"decay_norm_and_bias": False}}  # without an overlay
TECHNIQUES = sorted({path.stem for path in OVERLAYS.glob("*.json")} - NOT_OF_TRAIN | KEYS.keys())
ENTRIES = [(kind, name) for kind, names in MENUS.items() for name in names[1:]]
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
    "baseline": {"trees": 5, "leaves": 7, "voxels_per_scan": 300},
    **KEYS,
}


@pytest.fixture(scope="module")
def few(cohort_dir: Path, once: Callable) -> Path:
    """A datalist with three scans to train on, and two each to validate and to test."""

    def write(folder: Path) -> Path:
        datalist = json.loads((cohort_dir / "datalist.json").read_text())
        parts: dict[str, list] = {"test": [], "validation": [], "training": []}
        for scan in datalist["training"]:
            part = "test" if scan["fold"] == 0 else "validation" if scan["inner_folds"][0] == 0 else "training"
            parts[part].append(scan)
        few = [*parts["test"][:2], *parts["validation"][:2], *parts["training"][:3]]
        path = cohort_dir / "few.json"
        path.write_text(json.dumps({**datalist, "training": few}))
        return path

    return once("few", write)


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
    if {"distill", "teacher_agreement"} & {*names}:
        overrides["teacher"] = str(a_teacher(folder.parent, names))
    return overrides


def a_teacher(folder: Path, names: tuple[str, ...]) -> Path:
    """Weights, not trained, with a card by which they see what a student with these overlays sees."""
    path = folder / "-".join(["teacher", *names, "model.pt"])
    scaling = [{"_target_": "ScaleIntensityd", "keys": "image", "minv": 0.0, "maxv": 1.0}]
    if "simulated_patients" in names:
        scaling = [json.loads((OVERLAYS / "simulated_patients.json").read_text())["intensity"]]
    definition = {"_target_": "scripts.networks.meshnet.MeshNet", "channels": 3}
    card = {"network_def": definition, "spacing": [8.0] * 3, "spatial_size": [32] * 3, "intensity": scaling}
    if "finetune" in names:
        released = json.loads((ROOT / "models" / "model_5.json").read_text())
        card |= {key: released[key] for key in ("spacing", "intensity")}
    if not path.exists():
        torch.save(MeshNet(channels=3).state_dict(), path)
        path.with_suffix(".json").write_text(json.dumps(card))
    return path


def parsed(files: tuple[str, ...], overrides: dict) -> ConfigParser:
    return checked(*(name for name in files if name not in KEYS), **overrides)


def run(files: tuple[str, ...], overrides: dict) -> ConfigParser:
    """What ``python -m monai.bundle run`` does."""
    parser = parsed(files, overrides)
    torch.manual_seed(random.randrange(2**31))  # what a new process has instead
    try:
        parser.get_parsed_content("initialize")
        parser.get_parsed_content("run")
    finally:
        if EVALUATE not in files:
            parser.get_parsed_content("run_folder").release()
    return parser


def run_and_stop(files: tuple[str, ...], overrides: dict) -> None:
    """A run that gets SIGTERM, as from a cluster, in the first iteration of its last epoch."""

    def told_to_stop(self: TrainingState, trainer: Engine) -> None:
        if trainer.state.iteration == (trainer.state.max_epochs - 1) * trainer.state.epoch_length + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        iteration_completed(self, trainer)

    iteration_completed = TrainingState._iteration_completed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "_iteration_completed", told_to_stop)
        with pytest.raises(SystemExit) as stopped:
            run(files, overrides)
    assert stopped.value.code == 128 + signal.SIGTERM


def results(folder: Path) -> dict:
    """All that a run leaves: each tensor of its state, and the history but for the seconds that epochs took."""
    state = torch.load(folder / "checkpoint_last.pt", weights_only=True)
    parts = {key: part for key, part in state.items() if key not in ("facts", "random", "trainer")}
    rows = [line.split(",") for line in (folder / "history.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if not name.startswith("seconds")]
    return {**dict(leaves(parts)), "history": [[row[i] for i in kept] for row in rows]}


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}.{key}")
    else:
        yield name, value.numpy().tobytes() if torch.is_tensor(value) else str(value)


def train_stop_resume_evaluate(few: Path, tmp_path: Path, names: tuple[str, ...], **more: object) -> None:
    once, twice = tmp_path / "undisturbed", tmp_path / "resumed"
    run(names, given(few, once, names) | more)
    overrides = given(few, twice, names) | more
    run_and_stop(names, overrides)
    run(names, overrides)
    expected, found = results(once), results(twice)
    assert {key for key in {**expected, **found} if expected.get(key) != found.get(key)} == set()
    shutil.rmtree(once)
    table = run((*names, EVALUATE), overrides)
    assert 0 <= table.get_parsed_content("validate#evaluator").state.metrics["val_mean_dice"] <= 1
    assert (twice / "metrics.csv").is_file()


def skip_without_its_packages(name: str) -> None:
    for package in {"tracking": ["tensorboard", "mlflow"], "unetr": ["einops"], "swin_unetr": ["einops"]}.get(name, []):
        pytest.importorskip(package, reason=f"{name} needs {package}")


def chosen(names: Iterable, kept: set) -> list:
    """All ``names`` to parametrize a test with: those that are ``kept`` run by default, the others are slow."""
    return [pytest.param(name, marks=pytest.mark.kept if name in kept else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_all_that_an_overlay_names_can_be_built(name: str, few: Path, tmp_path: Path) -> None:
    skip_without_its_packages(name)
    built((name,), given(few, tmp_path, (name,)))


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_all_that_an_entry_names_can_be_built(kind: str, name: str, few: Path, tmp_path: Path) -> None:
    skip_without_its_packages(name)
    built((), given(few, tmp_path, ()) | SMALLER.get(name, {}) | {f"{kind}_name": name})


def built(files: tuple[str, ...], overrides: dict) -> None:
    """Read, check and build a training with these configs, the trainer and its handlers too."""
    parser = parsed(files, overrides)
    assert parser.get_parsed_content("train#trainer").state.max_epochs == overrides["epochs"]


@pytest.mark.parametrize("name", chosen(TECHNIQUES, {"contrasts", "gradients", "kspace", "priors"}))
def test_an_overlay(name: str, few: Path, tmp_path: Path) -> None:
    skip_without_its_packages(name)
    train_stop_resume_evaluate(few, tmp_path, (name,))


@pytest.mark.parametrize("entry", chosen(ENTRIES, {("network", "unet")}), ids="-".join)
def test_an_entry_of_a_menu(entry: tuple[str, str], few: Path, tmp_path: Path) -> None:
    kind, name = entry
    skip_without_its_packages(name)
    more = SMALLER.get(name, {}) | ({"epochs": 1} if kind == "network" else {})
    train_stop_resume_evaluate(few, tmp_path, (), **{f"{kind}_name": name}, **more)


# One that is new goes into TOUCHING by name: in here it would draw all pairs anew.
SAMPLED = [name for name in TECHNIQUES if name not in ("instance_norm", "teacher_agreement", "tracking")]
PAIRS = random.Random(2026).sample(list(combinations(SAMPLED, 2)), 10)
TOUCHING = [  # these change the same things
    ("priors", "progressive"),
    ("adversarial", "contrastive"),
    ("ema", "adversarial"),
    ("simulated_patients", "kspace"),
    ("mix", "progressive"),
    ("baseline", "mix"),
    ("distill", "finetune"),
    ("distill", "progressive"),
    ("ema", "instance_norm"),
    ("distill", "instance_norm"),
]
NOT_TOGETHER = {
    ("mix", "contrasts"): "mix.json: does not mix scans of several contrasts; leave it or contrasts.json out",
    ("baseline", "contrastive"): "contrastive_layer classifier: no layer of a BoostedTrees; ",
    ("baseline", "ema"): "baseline.json: trees have no weights to average; leave ema.json out",
    ("baseline", "finetune"): "baseline.json: fits trees, the network is a MeshNet; leave one of the two out",
    **{
        ("baseline", name): f"baseline.json: trees are fitted without gradients and on one grid, and {handler} changes"
        for name, handler in {
            "adversarial": "AdversarialLoss",
            "distill": "Distillation",
            "gradients": "GradientClipping",
            "priors": "LesionPriors",
            "progressive": "CoarseToFine",
        }.items()
    },
}


TOGETHER = [pair for pair in dict.fromkeys([*TOUCHING, *PAIRS]) if not {pair, pair[::-1]} & {*NOT_TOGETHER}]


@pytest.mark.parametrize("pair", TOGETHER, ids="-".join)
def test_all_that_two_overlays_name_can_be_built(pair: tuple[str, str], few: Path, tmp_path: Path) -> None:
    built(pair, given(few, tmp_path, pair))


@pytest.mark.parametrize("pair", chosen(TOGETHER, {("mix", "progressive")}), ids="-".join)
def test_two_overlays_work_together(pair: tuple[str, str], few: Path, tmp_path: Path) -> None:
    train_stop_resume_evaluate(few, tmp_path, pair)


@pytest.mark.parametrize("pair", NOT_TOGETHER, ids="-".join)
def test_what_does_not_go_together_is_refused_in_a_line(pair: tuple, contrast_dir: Path, tmp_path: Path) -> None:
    overrides = {"dataset_dir": str(contrast_dir), "output_dir": str(tmp_path), "epochs": 1, "channels": 2}
    if "distill" in pair:
        overrides["teacher"] = str(a_teacher(contrast_dir, pair))
    with refused(f"^{NOT_TOGETHER[pair]}"):
        run(pair, overrides)


@pytest.mark.slow
def test_evaluation_measures_the_averaged_weights_that_were_saved(few: Path, tmp_path: Path) -> None:
    overrides = given(few, tmp_path, ()) | {"ema_decay": 0.5}
    run(("ema",), overrides)
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    for files in (("ema", EVALUATE), (EVALUATE, "ema")):
        measured = run(files, overrides).get_parsed_content("validate#network").state_dict()
        assert all(torch.equal(measured[key], best[key]) for key in best)
    assert any(not torch.equal(best[key], state["network"][key]) for key in best)  # not the weights that are trained
    for key, value in state["network"].items():  # the statistics are those of averaged weights, so averaged, too
        if "running" in key:
            assert not torch.equal(state["ema"][f"module.{key}"], value)


@pytest.mark.slow
@pytest.mark.parametrize("save_interval", [1, 100])
def test_a_run_that_stopped_early_is_finished(few: Path, tmp_path: Path, save_interval: int) -> None:
    overrides = given(few, tmp_path, ()) | {"epochs": 9, "patience": 1, "save_interval": save_interval}
    overrides |= {"learning_rate": 1e-9}  # so that nothing improves
    for _ in range(2):
        trainer = run(("early_stopping",), overrides).get_parsed_content("train#trainer")
        epochs = len((tmp_path / "history.csv").read_text().splitlines()) - 1
        assert trainer.state.epoch == epochs < 9
        assert trainer.state.epoch - trainer.state.run_log["rows"][0]["epoch"] >= 1


@pytest.mark.slow
def test_soft_labels_a_loss_of_the_menu_and_its_value_in_validation_go_together(few: Path, tmp_path: Path) -> None:
    more = {"loss_name": "dice_ce", "mixup_probability": 1, "cutmix_probability": 0}
    train_stop_resume_evaluate(few, tmp_path, ("mix", "monitors"), **more)


@pytest.mark.slow
def test_simulated_scans_are_augmented_too(few: Path, tmp_path: Path) -> None:
    overrides = given(few, tmp_path, ("simulated_patients",)) | {"augmentation_name": "light"}
    parser = run(("simulated_patients", "kspace"), overrides)
    used = [type(t).__name__ for t in parser.get_parsed_content("train#preprocessing").transforms]
    assert used[0] == "SimulateScand"
    assert {"RandFlipd", "RandKSpaceLinesd"} <= {*used}
