"""A run's record repeats it, and tells it from another by what may not differ."""

import json
import shlex
import subprocess
from pathlib import Path

import monai
import pytest
import torch
from conftest import NOT_OF_TRAIN, OVERLAYS, ROOT, TRAIN, recipe

from scripts.training import run_record
from scripts.training.run_record import command, differences, facts_of


def test_a_run_is_on_record_with_all_that_is_needed_to_repeat_it(trained: dict) -> None:
    record = json.loads((trained["root"] / "eval" / "run.json").read_text())
    recipe = shlex.quote(TRAIN)
    assert record["command"].startswith(f"python -m monai.bundle run training --config_file {recipe} --dataset_dir ")
    assert len(record["cohort"]) == 16
    assert record["config"]["channels"] == 8
    assert record["config"]["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert set(record["overrides"]) == {"dataset_dir", "output_dir", "ckpt_dir", "channels", "epochs", "learning_rate"}
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["monai"] == monai.__version__
    assert record["hardware"]["threads"] >= 1
    if (ROOT / ".git").exists():
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert record["git_revision"].removesuffix("-dirty") == revision.stdout.strip()


def test_recorded_overrides_are_an_overlay_that_repeats_the_run(trained: dict, tmp_path: Path) -> None:
    record = json.loads((trained["root"] / "eval" / "run.json").read_text())
    (tmp_path / "again.json").write_text(json.dumps(record["overrides"]))
    config = recipe(str(tmp_path / "again.json")).get_parsed_content("config")
    assert {key: value for key, value in config.items() if key[0] != "_"} == record["config"]


@pytest.mark.parametrize(
    ("theirs", "ours", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2, "b": None}, [("a", 1, 2)]),
        ({"_desc_": "x", "a": {"_desc_": "x", "b": 1}}, {"_desc_": "y", "a": {"_desc_": "y", "b": 1}}, []),
        ({"a": {"b": {"c": 1}, "d": 2}}, {"a": {"b": {"c": 3}, "d": 2}}, [("a#b#c", 1, 3)]),
        ({"a": {"b": 1}}, {"a": [1]}, [("a", {"b": 1}, [1])]),
        ({"device": "cpu", "_meta_": {}, "x": {"device": 1}}, {"device": "cuda", "x": {}}, [("x#device", 1, None)]),
    ],
)
def test_differences_are_told_by_name_as_deep_as_they_go(theirs: dict, ours: dict, found: list) -> None:
    assert list(differences(theirs, ours)) == found


def test_whatever_objects_a_program_passed_the_facts_are_json() -> None:
    facts = facts_of({"device": torch.device("cpu"), "epochs": 3, "_meta_": {}}, "abc")
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["config"] == {"device": "cpu", "epochs": 3}


@pytest.mark.parametrize("given", [["--storage", "{}"], ["--storage={}"]])
def test_a_password_is_not_on_record(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql+psycopg://me:s3c%40ret@host:5432/optuna"
    monkeypatch.setattr("sys.argv", ["scripts/hpo.py", *(part.format(url) for part in given)])
    assert "s3c" not in command()
    assert "postgresql+psycopg://me:***@host:5432/optuna" in command()
    facts = facts_of({"tracking_uri": "https://me:s3cret@host/mlflow", "epochs": 3}, "abc")
    assert facts["config"] == {"tracking_uri": "https://me:***@host/mlflow", "epochs": 3}


@pytest.mark.parametrize("path", sorted(OVERLAYS.glob("*.json")), ids=lambda path: path.stem)
def test_an_overlay_says_what_it_does_and_its_text_is_no_part_of_a_run(path: Path) -> None:
    overlay = json.loads(path.read_text())
    text = overlay["_desc_"]
    assert 1 <= len(text) <= 3
    assert text[-1].startswith("Start: ")
    if path.stem not in NOT_OF_TRAIN - {"usual"}:
        parser = recipe("ema", path.stem)
        assert parser["_desc_"] == text  # not what the trained network is
        facts = facts_of(parser.get(), "abc")
        found = {name.split("#")[0] for name, *_ in differences(run_record.recipe(), facts["config"])}
        assert {name for name in found | {*facts["overrides"]} if name.startswith("_")} == set()
