"""What no config reads or allows is refused in a line that names the key; an error is a line about its cause."""

import json
import sys
from pathlib import Path

import monai.bundle
import pytest
from conftest import EVALUATE, INFERENCE, TRAIN, bundle

from scripts.common.errors import InputError


@pytest.fixture(autouse=True)
def plain_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def run(*configs: str, **overrides: object) -> list[str]:
    """The lines with which a run is refused before it has begun."""
    with pytest.raises(InputError) as error:
        monai.bundle.run(config_file=list(configs), **overrides)
    return str(error.value).splitlines()


UNREAD = 'nothing reads this key, {} (a new key is read as "@{}", or is in "allowed")'


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
    ("key", "value", "rule"),
    [
        ("learning_rate", -1, "exclusiveMinimum 0"),
        ("learning_rate", "fast", "type number"),
        ("channels", 0, "type integer, minimum 1"),
        ("channels", 2.5, "type integer"),
        ("fold", -1, "minimum 0"),
        ("val_interval", 0, "minimum 1"),
        ("epochs", 0, "minimum 1"),
        ("epochs", 1.5, "type integer"),
        ("epochs", True, "type integer"),
        ("batch_size", 0, "minimum 1"),
        ("accumulation_steps", 0, "minimum 1"),
        ("save_interval", 0, "minimum 1"),
        ("dropout", 1, "exclusiveMaximum 1"),
        ("label_smoothing", 2, "maximum 1"),
        ("warmup_fraction", -0.1, "minimum 0"),
        ("background_weight", -0.5, "minimum 0"),
        ("eps", 0, "exclusiveMinimum 0"),
        ("weight_decay", -1e-5, "minimum 0"),
        ("seed", "zero", "type integer"),
        ("num_workers", -1, "minimum 0"),
        ("amp", "yes", "enum"),
        ("resume", "yes", "enum"),
        ("dataset_dir", 7, "type string"),
        ("inner_fold", "first", "anyOf"),
    ],
)
def test_a_value_out_of_kind_or_range_is_refused_with_what_is_allowed(key: str, value: object, rule: str) -> None:
    (line,) = run(TRAIN, run_id="training", **{key: value})
    assert line.startswith(f"{key} {value!r}: not allowed; its rules are: ")
    assert rule in line


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    lines = run(TRAIN, run_id="training", epoch=3, channels=0, fold="x", output_dir=str(tmp_path / "out"))
    assert [line.split(":")[0] for line in lines] == ["epoch", "fold 'x'", "channels 0"]
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
    assert run(INFERENCE, channels=0)[0].startswith("channels 0: not allowed")


def test_new_keys_that_are_read_or_described_are_no_misspellings(cohort_dir: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.json"
    new = {
        "flip_probability": 0.5,
        "train#random_transforms": [{"_target_": "RandFlipd", "keys": ["image", "label"], "prob": "@flip_probability"}],
        "note": "for the paper",
        "+allowed": {"note": {"type": "string"}},
        "+initialize": ["$print('started')"],
        "look": ["$print('a run of one\\'s own')"],
    }
    overlay.write_text(json.dumps(new))
    (line,) = run(TRAIN, str(overlay), run_id="training", dataset_dir=str(cohort_dir), fold=7)
    assert line == "fold 7: this cohort has folds 0 to 2"  # nothing was wrong before


def test_every_shipped_config_passes(trained: dict) -> None:
    for configs, run_id in (([TRAIN], "training"), ([TRAIN, EVALUATE], "evaluating"), ([INFERENCE], "run")):
        workflow = monai.bundle.ConfigWorkflow(configs)
        workflow.initialize()
        assert run_id in workflow.parser
        assert workflow.parser.get_parsed_content("config")["bundle_root"].startswith("$")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--network_def#channel", 3],
            "TypeError in scripts.networks.meshnet.MeshNet: MeshNet.__init__() got an unexpected",
        ),
        (["--lr_scheduler#pct_start", 3.0], "ValueError in torch.optim.lr_scheduler.OneCycleLR: Expected float betw"),
        (["--loss_def#weight", "[1,2,3]"], "RuntimeError: weight tensor should be defined either for all or no"),
    ],
)
def test_an_error_is_its_cause_in_the_last_line_and_a_traceback_on_demand(
    cohort_dir: Path, tmp_path: Path, arguments: list, line: str
) -> None:
    folders = ["--dataset_dir", cohort_dir, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models"]
    result = bundle(
        "training", "--config_file", TRAIN, "--channels", 2, "--epochs", 1, "--report", False, *folders, *arguments
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.stderr
    assert "ERROR" not in result.stdout
    result = bundle("training", "--config_file", TRAIN, "--channels", 2, *folders, *arguments, "--debug", "true")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
