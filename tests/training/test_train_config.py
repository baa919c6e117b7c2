"""configs/train.json is the paper's recipe, and training by it works, from any directory, on the splits it says."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import monai
import pytest
import torch
from conftest import EVALUATE, OVERLAYS, ROOT, TRAIN, bundle, recipe, refused
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedTrainer, Trainer

from scripts.common.errors import describe, first_cause
from scripts.execution.precision import has_bfloat16
from scripts.networks.meshnet import MeshNet


def test_hyperparameters_are_top_level_values_of_the_paper() -> None:
    """arXiv 2503.05531, Section 2 and supplement, as in the project's fact sheet."""
    paper = {"background_weight": 0.5, "lesion_weight": 1.0, "label_smoothing": 0.01, "learning_rate": 1e-3}
    paper |= {"weight_decay": 3e-5, "eps": 1e-4, "warmup_fraction": 0.01, "batch_size": 1, "amp": True}
    found = json.loads(Path(TRAIN).read_text())
    assert {key: found[key] for key in paper} == paper


def test_overrides_reach_what_they_name(cohort_dir: Path) -> None:
    given = {"channels": 5, "dropout": 0.1, "learning_rate": 0.004, "weight_decay": 0.02, "eps": 1e-6}
    given |= {"background_weight": 0.3, "lesion_weight": 0.9, "label_smoothing": 0.2}
    parser = recipe(dataset_dir=cohort_dir, **given, epochs=7, batch_size=2, accumulation_steps=3)
    optimizer, schedule = parser.get_parsed_content("optimizer"), parser.get_parsed_content("lr_scheduler")
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (group["weight_decay"], group["eps"], group["max_lr"]) == (0.02, 1e-6, 0.004)
    assert group["initial_lr"] == pytest.approx(0.004 / 100)
    assert schedule.total_steps == 7 * 5 + 1  # 10 training scans: 5 mini-batches an epoch
    loss = parser.get_parsed_content("loss")
    assert loss.weight.tolist() == pytest.approx([0.3, 0.9])
    assert loss.label_smoothing == 0.2
    network = parser.get_parsed_content("network")
    assert sum(p.numel() for p in network.parameters()) == 5682
    assert any(isinstance(m, torch.nn.Dropout3d) and m.p == 0.1 for m in network.modules())
    assert parser.get_parsed_content("train#trainer").state.max_epochs == 7


def test_scans_are_on_the_cohorts_grid_and_masks_are_binary(cohort_dir: Path) -> None:
    parser = recipe(dataset_dir=cohort_dir)
    scans = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    volume_of = {str(cohort_dir / scan["image"]): scan["lesion_volume"] for scan in scans}
    for name in ("train", "validate"):
        for item in parser.get_parsed_content(f"{name}#dataset"):
            assert item["image"].shape == item["label"].shape == (1, 32, 32, 32)
            assert (item["image"].min(), item["image"].max()) == (0, 1)
            tiny = volume_of[item["image"].meta["filename_or_obj"]] < 4 * 8**3  # may fall between the grid's voxels
            assert set(item["label"].unique().tolist()) in ({0, 1}, {0} if tiny else {0, 1})


def test_lesion_volume_survives_orientation_spacing_and_scale_slope(cohort_dir: Path) -> None:
    scans = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    volume_of = {str(cohort_dir / scan["image"]): scan["lesion_volume"] for scan in scans}
    parser = recipe(dataset_dir=cohort_dir, inner_fold=None)
    for item in parser.get_parsed_content("train#dataset"):
        true = volume_of[item["image"].meta["filename_or_obj"]]
        assert item["label"].sum() * 8.0**3 == pytest.approx(true, rel=0.25, abs=10 * 8**3)


@pytest.mark.parametrize(
    ("amp", "amp_dtype", "device", "on", "dtype"),
    [
        (True, "bfloat16", "cpu", False, torch.bfloat16),  # the inferer does it
        (True, "auto", "cuda", True, torch.float16),
        (False, "auto", "cuda", False, None),
        (False, "bfloat16", "cpu", False, None),
        (True, "bfloat16", "$torch.device('cuda:1')", True, torch.bfloat16),
    ],
)
def test_amp_is_one_key_on_every_device(amp: bool, amp_dtype: str, device: str, on: bool, dtype: torch.dtype) -> None:
    parser = recipe(amp=amp, amp_dtype=amp_dtype, device=device)
    parser.parse()
    for name, engine in (("train", "trainer"), ("validate", "evaluator")):
        assert parser.get_parsed_content(f"{name}#{engine}#amp") is on
        assert parser.get_parsed_content(f"{name}#{engine}#amp_kwargs").get("dtype") == dtype
        assert parser.get_parsed_content(f"{name}#inferer").dtype == dtype


def test_the_device_is_an_override_like_any_other(cohort_dir: Path) -> None:
    parser = recipe(dataset_dir=cohort_dir, device="cpu")
    assert parser.get_parsed_content("train#trainer").state.device == torch.device("cpu")


def test_handlers_have_names_and_an_overlays_come_between_the_restored_state_and_the_log(
    cohort_dir: Path, tmp_path: Path
) -> None:
    more = [{"_target_": "StatsHandler", "iteration_log": False}]
    overlay = {"train#progress#_disabled_": True, "+train#handlers": more}
    (tmp_path / "overlay.json").write_text(json.dumps(overlay))
    parser = recipe(str(tmp_path / "overlay.json"), dataset_dir=cohort_dir, output_dir="/nowhere")
    trainer = parser.get_parsed_content("train#trainer")
    handlers = parser.get_parsed_content("train#handlers")
    assert "ProgressBar" not in [type(handler).__name__ for handler in handlers]
    assert type(handlers[-1]).__name__ == "StatsHandler"
    started, ended = (
        [type(getattr(handler, "__self__", handler)).__name__ for handler, *_ in trainer._event_handlers[event]]
        for event in (Events.STARTED, Events.EPOCH_COMPLETED)
    )
    assert started[0] == "RestoreState"
    assert ended[-3:] == ["StatsHandler", "RunLog", "TrainingState"]


def test_scans_that_do_not_fit_the_memory_asked_for_are_kept_on_disk(cohort_dir: Path) -> None:
    gigabytes = 16 * 32**3 * 5 / 1e9  # 10 training and 6 validation scans, an image in 4 and a mask in 1 byte a voxel
    for share, cache in ((1.01, "memory"), (0.99, "disk")):
        parser = recipe(dataset_dir=cohort_dir, cache_gigabytes=share * gigabytes)
        assert parser.get_parsed_content("cache") == cache
        assert parser.get_parsed_content("train#dataloader").num_workers == (0 if cache == "memory" else 2)


def test_masks_are_one_byte_a_voxel_in_the_cache(cohort_dir: Path) -> None:
    assert recipe(dataset_dir=cohort_dir).get_parsed_content("validate#dataset")[0]["label"].dtype == torch.uint8


def test_layer_checkpointing_and_compilation_are_a_key_each(cohort_dir: Path) -> None:
    parser = recipe(dataset_dir=cohort_dir, checkpoint_layers=3, compile=True)
    assert parser.get_parsed_content("network").checkpoint_layers == 3
    assert isinstance(parser.get_parsed_content("train#trainer").network, torch._dynamo.OptimizedModule)
    assert not recipe(dataset_dir=cohort_dir).get_parsed_content("train#trainer").compile


def test_tensor_cores_and_deterministic_algorithms_are_a_key_each(cohort_dir: Path) -> None:
    try:
        for value in (False, True):
            parser = recipe(dataset_dir=cohort_dir, tf32=value, use_deterministic_algorithms=value)
            assert "$@determinism" in parser["run"]
            parser.get_parsed_content("determinism")
            assert torch.are_deterministic_algorithms_enabled() is value
            assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is value
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.allow_tf32 = False


def test_zoo_properties_are_all_there(cohort_dir: Path) -> None:
    workflow = ConfigWorkflow(TRAIN, workflow_type="train", dataset_dir=str(cohort_dir), output_dir="/nowhere")
    workflow.initialize()
    assert workflow.check_properties() == []
    assert not Path("/nowhere").exists()  # only a run takes folders


def test_training_learns(trained: dict) -> None:
    history = list(csv.DictReader((trained["root"] / "eval" / "history.csv").open()))
    assert [int(row["epoch"]) for row in history] == list(range(1, 21))
    assert float(history[-1]["loss"]) < 0.6 * float(history[0]["loss"])
    assert max(float(row["val_mean_dice"]) for row in history) > 0.3  # of 6 unseen subjects at 8 mm


@pytest.mark.slow
def test_best_weights_are_those_of_the_best_epoch(trained: dict, cohort_dir: Path) -> None:
    history = list(csv.DictReader((trained["root"] / "eval" / "history.csv").open()))
    result = bundle(
        "evaluating", "--config_file", f"['{TRAIN}','{EVALUATE}']", *trained["arguments"],
        "--output_dir", trained["root"] / "checked",
        "--cohort#check", "['validation']",
        "--scans", "$@cohort.validation", "--run", "['$@config','$@validate#evaluator.run()']", "--report", False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    summary = json.loads((trained["root"] / "checked" / "summary.json").read_text())
    best = max(float(row["val_mean_dice"]) for row in history)
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(best, abs=1e-5)


def test_log_says_what_runs_and_where_everything_is(trained: dict) -> None:
    log = trained["stdout"]
    for fact in (
        "bfloat16 on cpu" if has_bfloat16() else "float32 on cpu",
        "channels 8, ",
        "epochs 20",
        "torch 2.13.0",
        "SIMULATED",
        "epoch 20/20",
    ):
        assert fact in log, fact
    assert f"{sum(p.numel() for p in MeshNet(channels=8).parameters()):,} parameters" in log
    assert str(trained["root"] / "models" / "model.pt") in log
    assert str(trained["root"] / "eval" / "history.csv") in log


def test_no_warning_but_monais_own_about_configs(trained: dict) -> None:
    warnings = [line for line in (trained["stdout"] + trained["stderr"]).splitlines() if "Warning:" in line]
    assert all("GHSA-873f-pvrv-4x83" in line for line in warnings), warnings


def test_a_run_writes_only_where_it_is_told(trained: dict) -> None:
    names = {str(path.relative_to(trained["root"])) for path in trained["root"].rglob("*") if path.is_file()}
    assert {name for name in names if not name.startswith(("checked", "evaluated"))} == {
        "eval/.lock",
        "eval/history.csv",
        "eval/report.html",
        "eval/run.json",
        "models/.lock",
        "models/checkpoint_last.pt",
        "models/model.json",
        "models/model.pt",
    }


@pytest.mark.slow
def test_without_inner_fold_all_outer_training_scans_are_used_and_the_test_fold_is_not_opened(
    cohort_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(cohort_dir, tmp_path / "cohort")
    scans = json.loads((cohort_dir / "datalist.json").read_text())["training"]
    for scan in scans:
        if scan["fold"] == 1:
            (tmp_path / "cohort" / scan["image"]).unlink()
            (tmp_path / "cohort" / scan["label"]).unlink()
    result = bundle(
        "training", "--config_file", TRAIN, "--dataset_dir", tmp_path / "cohort", "--fold", 1, "--inner_fold", "none",
        "--channels", 2, "--epochs", 2, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert "16 training, 0 validation, 8 test scans" in result.stdout
    final = torch.load(tmp_path / "models" / "checkpoint_last.pt", weights_only=True)["network"]
    model = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(model[key], final[key]) for key in final)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda image, label: image.unlink(), "{image}: no such file"),
        (lambda image, label: image.write_bytes(image.read_bytes()[:2000]), "{image}: not a readable NIfTI image"),
        (lambda image, label: label.write_text("nothing"), "{label}: not a readable NIfTI image"),
    ],
    ids=["missing", "truncated", "text"],
)
def test_a_broken_scan_stops_the_run_with_one_line(cohort_dir: Path, tmp_path: Path, break_it, line: str) -> None:
    shutil.copytree(cohort_dir, tmp_path / "cohort")
    scan = next(s for s in json.loads((cohort_dir / "datalist.json").read_text())["training"] if s["fold"] != 0)
    image, label = (tmp_path / "cohort" / scan[key] for key in ("image", "label"))
    break_it(image, label)
    result = bundle(
        "training", "--config_file", TRAIN, "--dataset_dir", tmp_path / "cohort",
        "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models",
    )  # fmt: skip
    assert result.returncode == 1
    assert line.format(image=image, label=label) in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "eval").exists()
    assert not (tmp_path / "models").exists()


@pytest.mark.slow  # three runs of the training command
def test_the_disk_cache_changes_no_result_and_serves_the_next_run(cohort_dir: Path, tmp_path: Path) -> None:
    files, history = {}, {}
    for run, cache in (("memory", "memory"), ("first", "disk"), ("second", "disk")):
        out = tmp_path / run
        options = {"dataset_dir": cohort_dir, "cache": cache, "cache_dir": tmp_path / "cache", "epochs": 2}
        options |= {"channels": 3, "output_dir": out, "ckpt_dir": out, "report": False}
        result = bundle("training", "--config_file", TRAIN, *(x for k, v in options.items() for x in (f"--{k}", v)))
        assert result.returncode == 0, result.stderr
        history[run] = (out / "history.csv").read_bytes()
        files[run] = {file: file.stat().st_mtime_ns for file in tmp_path.glob("cache/*")}
    assert history["memory"] == history["first"] == history["second"]
    assert (len(files["memory"]), len(files["first"])) == (0, 16)
    assert files["first"] == files["second"]


@pytest.mark.parametrize(
    "name", ["", "light", "medium", "heavy", "contrast", "auto", "mix", "kspace", "simulated_patients"]
)
def test_what_workers_are_given_can_be_sent_to_another_process(name: str, cohort_dir: Path) -> None:
    is_overlay = (OVERLAYS / f"{name}.json").is_file()
    chosen = {"augmentation_name": name} if name and not is_overlay else {}
    given = {"dataset_dir": cohort_dir, "cache": "disk", "spatial_size": [16, 16, 16], **chosen}
    parser = recipe(*[name] * is_overlay, **given)
    for key in ("train#seeded_dataset", "validate#dataset"):
        sent = pickle.loads(pickle.dumps(parser.get_parsed_content(key)))
        assert len(sent) == len(parser.get_parsed_content(key))


@pytest.mark.slow
def test_workers_that_are_spawned_train(cohort_dir: Path, tmp_path: Path) -> None:
    program = """import multiprocessing, runpy
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    runpy.run_module("monai.bundle", run_name="__main__")
"""
    (tmp_path / "started.py").write_text(program)
    flags = {"dataset_dir": cohort_dir, "output_dir": tmp_path / "out", "cache_dir": tmp_path / "cache"}
    flags |= {"cache": "disk"}
    flags |= {"epochs": 1, "channels": 2, "spatial_size": "[16,16,16]", "report": "false", "augmentation_name": "light"}
    words = [str(word) for key, value in flags.items() for word in (f"--{key}", value)]
    command = [sys.executable, str(tmp_path / "started.py"), "run", "training", "--config_file", TRAIN, *words]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert "num_workers" not in done.stderr
    assert len(list((tmp_path / "cache").glob("*.pt"))) == 16
    assert (tmp_path / "out" / "model.pt").is_file()


class FirstLossError(Exception):
    """Carries the loss of a training's first step, which ends there."""


@pytest.fixture
def first_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """The loss of the first step of the training that a function starts."""

    def stop(trainer: SupervisedTrainer) -> None:
        raise FirstLossError(trainer.state.output[0]["loss"])

    def run(self: SupervisedTrainer) -> None:
        self.add_event_handler(Events.ITERATION_COMPLETED, stop)
        Trainer.run(self)

    monkeypatch.setattr(SupervisedTrainer, "run", run)

    def call(start: Callable, *args: object, **kwargs: object) -> float:
        with pytest.raises(Exception) as caught:  # noqa: PT011, MONAI wraps it
            start(*args, **kwargs)
        assert isinstance(first_cause(caught.value), FirstLossError), describe(caught.value)
        return first_cause(caught.value).args[0]

    return call


CHOICES = {
    "loss and network": ((), {"loss_name": "dice_ce", "network_name": "unet", "dropout": 0.1}, "DiceCELoss UNet"),
    "augmentation and schedule": ((), {"augmentation_name": "medium", "schedule_name": "cosine", "amp": "false"}, ""),
    "an overlay and an optimizer": (("mix",), {"optimizer_name": "sgd", "optimizer#momentum": 0.5}, ""),
}


@pytest.mark.kept
@pytest.mark.parametrize("choice", CHOICES)
def test_the_recipe_is_the_same_by_the_command_and_by_each_of_monais_ways(
    choice: str, cohort_dir: Path, tmp_path: Path, first_loss: Callable
) -> None:
    overlays, overrides, kinds = CHOICES[choice]
    files = [TRAIN, *(str(OVERLAYS / f"{name}.json") for name in overlays)]
    given = {"channels": 4, "dataset_dir": str(cohort_dir), "report": False, "seed": 3, **overrides}

    def command(folder: str) -> None:
        torch.rand(3)  # what a process has drawn before
        monai.bundle.run("training", config_file=files, output_dir=str(tmp_path / folder), **given)

    def workflow(make: Callable, first: str, folder: str) -> None:
        torch.rand(5)
        made = make(config_file=files, output_dir=str(tmp_path / folder), **given)
        made.initialize()
        getattr(made, first)
        found = made.parser.get_parsed_content("loss"), made.network_def
        assert not kinds or kinds == " ".join(type(part).__name__ for part in found)
        made.run() if first == "network_def" else made.trainer.run()

    def parser(folder: str, first: str) -> None:
        torch.rand(7)
        made = recipe(*overlays, **given, output_dir=tmp_path / folder)
        made.get_parsed_content(first)
        made.get_parsed_content("train#trainer").run()

    expected = first_loss(command, "command")
    assert first_loss(workflow, monai.bundle.create_workflow, "network_def", "a") == expected
    assert first_loss(workflow, ConfigWorkflow, "evaluator", "b") == expected
    assert first_loss(parser, "c", "network") == expected
    assert first_loss(parser, "d", "train#dataloader") == expected
    assert first_loss(command, "e") == expected
    given["seed"] = 4
    assert first_loss(command, "f") != expected


def test_monais_load_builds_the_network_that_was_chosen(tmp_path: Path) -> None:
    made = recipe(network_name="segresnet", init_filters=16)
    torch.save(made.get_parsed_content("network_def").state_dict(), tmp_path / "weights.pt")
    (tmp_path / "args.json").write_text(json.dumps({"network_name": "segresnet", "init_filters": 16}))
    where = {"name": ROOT.name, "bundle_dir": str(ROOT.parent), "source": "github", "repo": "a/b/c"}
    options = {"model_file": str(tmp_path / "weights.pt"), "args_file": str(tmp_path / "args.json")}
    loaded = monai.bundle.load(**where, **options, workflow_type="train")
    assert type(loaded).__name__ == "SegResNet"
    wider = monai.bundle.load(**where, workflow_type="train", net_override={"dropout": 0.2})
    assert isinstance(wider, MeshNet)
    assert any(getattr(module, "p", 0) == 0.2 for module in wider.modules())


def test_words_mean_the_same_whatever_is_asked_first(cohort_dir: Path, tmp_path: Path) -> None:
    words = {"amp": "false", "report": "False", "train#html_report#facts": "TRUE", "inner_fold": "none"}
    given = {"dataset_dir": str(cohort_dir), "output_dir": str(tmp_path), **words}
    made = ConfigWorkflow(TRAIN, **given)
    made.initialize()
    found = [made.parser.get_parsed_content(key) for key in ("autocast", "report", "train#html_report#facts")]
    assert found == [None, False, True]
    assert made.parser.get_parsed_content("cohort").validation == []
    assert recipe(**given).get_parsed_content("autocast") is None
    late = recipe(**given)
    assert late.get_parsed_content("report") == "False"
    with refused("^report 'False': was read before it was checked; give False"):
        late.get_parsed_content("config")
