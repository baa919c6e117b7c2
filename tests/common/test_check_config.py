"""What no config reads or allows is refused in a line that names the key; an error is a line about its cause."""

import json
import re
import sys
from pathlib import Path

import monai.bundle
import pytest
from conftest import EVALUATE, INFERENCE, TRAIN, recipe, refused

from scripts.common.errors import InputError, describe, first_cause


@pytest.fixture(autouse=True)
def plain_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def run(*configs: str, **overrides: object) -> list[str]:
    """The lines with which a run is refused before it has begun."""
    with pytest.raises(RuntimeError) as error:
        monai.bundle.run(config_file=list(configs), **overrides)
    assert isinstance(first_cause(error.value), InputError)
    return describe(error.value).splitlines()


UNREAD = 'nothing reads this key, {} (a new key is read as "@{}")'


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("epoch", "did you mean epochs?"),
        ("learningrate", "did you mean learning_rate?"),
        ("dataset_dirs", "did you mean dataset_dir?"),
        ("no_such_flag", "is it misspelt?"),
        ("train#dataloaders", "did you mean train#dataloader?"),
        ("train#batch_size", "is it misspelt?"),
        ("validate#handler", "did you mean validate#handlers?"),
    ],
)
def test_an_override_that_nothing_reads_is_refused_with_the_nearest_name(key: str, hint: str) -> None:
    assert run(TRAIN, run_id="training", **{key: 3}) == [f"{key}: {UNREAD.format(hint, key)}"]


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("learning_rate", "fast", "a finite number, like the shipped 0.001"),
        ("eps", float("inf"), "a finite number, like the shipped 0.0001"),
        ("weight_decay", True, "a finite number, like the shipped 3e-05"),
        ("channels", 2.5, "a whole number, like the shipped 16"),
        ("channels", 5.0, "a whole number, like the shipped 16"),
        ("epochs", True, "a whole number, like the shipped 50"),
        ("seed", "zero", "a whole number, like the shipped 0"),
        ("amp", "yes", "true or false, like the shipped true"),
        ("resume", 1, "true or false, like the shipped false"),
        ("amp_dtype", 16, 'a text, like the shipped "auto"'),
        ("inner_fold", "first", "a whole number, like the shipped 0"),
    ],
)
def test_a_value_of_another_kind_than_the_shipped_one_is_refused(key: str, value: object, kind: str) -> None:
    assert run(TRAIN, run_id="training", **{key: value}) == [f"{key} {value!r}: expected {kind}"]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("learning_rate", 0.0, "learning_rate 0.0 is less than or equal to the minimum of 0"),
        ("epochs", "$5 - 5", "epochs 0 is less than the minimum of 1"),
        ("save_interval", "$0", "save_interval 0 is less than the minimum of 1"),
        ("update_bn_scans", "$-3", "update_bn_scans -3 is less than the minimum of 0"),
        ("weight_decay", -1e-5, "weight_decay -1e-05 is less than the minimum of 0"),
        ("eps", -1.0, "eps -1.0 is less than or equal to the minimum of 0"),
        ("channels", 0, "channels"),
        ("dropout", 1.0, "dropout"),
        ("label_smoothing", 1.0, "label_smoothing 1.0 is greater than or equal to the maximum of 1"),
        ("background_weight", -0.5, "background_weight -0.5 is less than the minimum of 0"),
        ("class_weights", "inverse", "class_weights 'inverse' is not one of ['fixed', 'balanced']"),
        ("mode", "least", "mode 'least' is not one of ['max', 'min']"),
        ("min_delta", -0.1, "min_delta -0.1 is less than the minimum of 0"),
        ("warmup_fraction", -0.1, "warmup_fraction -0.1 is less than the minimum of 0"),
        ("warmup_fraction", 1.5, "warmup_fraction 1.5 is greater than the maximum of 1"),
        ("batch_size", 0, "batch_size 0 is less than the minimum of 1"),
        ("accumulation_steps", 0, "accumulation_steps 0 is less than the minimum of 1"),
        ("val_interval", 0, "val_interval 0 is less than the minimum of 1"),
        ("save_interval", 0, "save_interval 0 is less than the minimum of 1"),
        ("epochs", 0, "epochs 0 is less than the minimum of 1"),
        ("update_bn_scans", -1, "update_bn_scans -1 is less than the minimum of 0"),
        ("num_workers", -1, "num_workers -1 is less than the minimum of 0"),
        ("num_workers", 2.5, "num_workers 2.5 is not of type 'integer'"),
        ("cache_gigabytes", -1.0, "cache_gigabytes -1.0 is less than the minimum of 0"),
        ("spacing", [8.0, 8.0], "spacing [8.0, 8.0] is too short"),
        ("spatial_size", [16, 0, 16], "spatial_size[1] 0 is less than the minimum of 1"),
        ("orientation", "RRS", "orientation 'RRS' does not match"),
        ("focal_gamma", -2.0, "focal_gamma -2.0 is less than the minimum of 0"),
        ("false_positive_weight", -1.0, "false_positive_weight -1.0 is less than the minimum of 0"),
        ("milestones", [2, -1], "milestones[0] 2 is greater than or equal to the maximum of 1"),
        ("noise_probability", 3.0, "noise_probability 3.0 is greater than the maximum of 1"),
        ("intensity#minv", 5, "intensity#minv 5: expected less than intensity#maxv, which is 1.0"),
        ("fold", -1, "fold -1: this cohort has folds 0 to 2"),
        ("fold", 7, "fold 7: this cohort has folds 0 to 2"),
        ("amp_dtype", "float8", "amp_dtype float8: expected auto, bfloat16 or float16"),
        ("cache", "tape", "cache 'tape' is not one of ['memory', 'disk', 'none']"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(cohort_dir: Path, key: str, value: object, line: str) -> None:
    with refused(f"^{re.escape(line)}"):
        recipe(dataset_dir=cohort_dir, output_dir="/nowhere", **{key: value}).get_parsed_content("train#trainer")
    assert not Path("/nowhere").exists()


@pytest.mark.parametrize(
    ("overlay", "key", "value", "line"),
    [
        ("adversarial", "adversarial_epsilon", 0.0, "is less than or equal to the minimum of 0"),
        ("adversarial", "adversarial_weight", 1.5, "is greater than the maximum of 1"),
        ("baseline", "voxels_per_scan", 0, "is less than the minimum of 1"),
        ("contrastive", "contrastive_weight", -1.0, "is less than the minimum of 0"),
        ("contrastive", "contrastive_voxels", 1, "is less than the minimum of 2"),
        ("contrastive", "contrastive_temperature", 0.0, "is less than or equal to the minimum of 0"),
        ("distill", "distillation_weight", -1.0, "is less than the minimum of 0"),
        ("distill", "temperature", 0.0, "is less than or equal to the minimum of 0"),
        ("early_stopping", "patience", 0, "is less than the minimum of 1"),
        ("gradients", "max_gradient_norm", 0.0, "is less than or equal to the minimum of 0"),
        ("gradients", "max_gradient_value", -1.0, "is less than or equal to the minimum of 0"),
        ("keep_checkpoints", "keep_best", -1, "is less than the minimum of 0"),
        ("keep_checkpoints", "keep_every", -2, "is less than the minimum of 0"),
        ("kspace", "spike_probability", 2.0, "is greater than the maximum of 1"),
        ("kspace", "lines_probability", 1.5, "is greater than the maximum of 1"),
        ("kspace", "lines_fraction", -0.1, "is less than the minimum of 0"),
        ("kspace", "lines_centre", 2.0, "is greater than the maximum of 1"),
        ("mix", "mixup_probability", -0.1, "is less than the minimum of 0"),
        ("mix", "mixup_alpha", 0.0, "is less than or equal to the minimum of 0"),
        ("mix", "cutmix_probability", 1.5, "is greater than the maximum of 1"),
        ("priors", "volume_weight", -1.0, "is less than the minimum of 0"),
        ("priors", "smoothness_weight", -1.0, "is less than the minimum of 0"),
        ("priors", "outside_weight", -1.0, "is less than the minimum of 0"),
        ("priors", "symmetry_weight", -1.0, "is less than the minimum of 0"),
        ("priors", "prior_weighting", "linear", "is not one of ['constant', 'scheduled', 'adaptive']"),
        ("progressive", "progressive_shares[0]", 0.0, "is less than or equal to the minimum of 0"),
        ("progressive", "progressive_shares[0]", 1.5, "is greater than the maximum of 1"),
        ("progressive", "progressive_shares", [], "should be non-empty"),
    ],
)
def test_a_techniques_value_out_of_range_is_refused_by_its_name(
    overlay: str, key: str, value: object, line: str
) -> None:
    given = {key.removesuffix("[0]"): [value] if key.endswith("[0]") else value}
    with refused(f"^{re.escape(f'{key} {value!r} {line}')}$"):
        recipe(overlay, **given).get_parsed_content("config")


@pytest.mark.parametrize("word", ["true", "false", "True", "FALSE", "none"])
def test_words_of_the_command_line_become_what_they_mean(word: str) -> None:
    parser = recipe(amp=word, report=word, inner_fold="none", cache="none")
    config = parser.get_parsed_content("config")
    meant = {"true": True, "false": False, "none": None}[word.lower()]
    assert config["amp"] is config["report"] is parser.get_parsed_content("amp") is meant
    assert parser.get_parsed_content("inner_fold") is None
    assert parser.get_parsed_content("cache") == "none"  # a text is expected there


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    lines = run(TRAIN, run_id="training", epoch=3, channels=0.5, fold="x", output_dir=str(tmp_path / "out"))
    assert sorted(line.split(":")[0] for line in lines) == ["channels 0.5", "epoch", "fold 'x'"]
    assert not (tmp_path / "out").exists()


def test_overlays_evaluation_and_inference_are_checked_too(tmp_path: Path) -> None:
    overlay = tmp_path / "mine.json"
    overlay.write_text(json.dumps({"wieght_decay": 0.1, "train#random_transform": []}))
    assert [line.split(":")[0] for line in run(TRAIN, str(overlay), run_id="training")] == [
        "train#random_transform",
        "wieght_decay",
    ]
    assert run(TRAIN, EVALUATE, run_id="evaluating", ckpt_paths="x")[0].startswith("ckpt_paths: nothing reads this key")
    assert run(INFERENCE, epochs=3)[0].startswith("epochs: nothing reads this key, is it misspelt?")
    assert run(INFERENCE, qc=3)[0].startswith("qc 3: expected true or false")


def test_new_keys_that_are_read_are_no_misspellings(cohort_dir: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.json"
    new = {
        "flip_probability": 0.5,
        "train#random_transforms": [{"_target_": "RandFlipd", "keys": ["image", "label"], "prob": "@flip_probability"}],
        "+initialize": ["$print('started')"],
        "look": ["$print('a run of one\\'s own')"],
        "_desc_": "a text",
        "_grid_": ["two", "texts"],
    }
    overlay.write_text(json.dumps(new))
    (line,) = run(TRAIN, str(overlay), run_id="training", dataset_dir=str(cohort_dir), fold=7)
    assert line == "fold 7: this cohort has folds 0 to 2"  # nothing was wrong before


def test_every_shipped_config_passes(trained: dict) -> None:
    for configs, run_id in (([TRAIN], "training"), ([TRAIN, EVALUATE], "evaluating"), ([INFERENCE], "run")):
        workflow = monai.bundle.ConfigWorkflow(configs)
        workflow.initialize()
        assert run_id in workflow.parser
        root = workflow.parser.get_parsed_content("config")["bundle_root"]
        assert root["_target_"].startswith("scripts.")  # it is not instantiated
