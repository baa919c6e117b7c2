"""What cannot be searched is refused in a line before the first trial."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TRAIN
from monai.bundle import ConfigParser

from scripts.search.space import check_space


def suggest(kind: str, **arguments: object) -> dict:
    return {"_target_": f"optuna.Trial.suggest_{kind}", "_mode_": "callable", **arguments}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"n_trial": 3}, "n_trial: nothing reads this key, did you mean n_trials?"),
        ({"n_trials": 0}, "n_trials 0: expected a whole number of at least 1"),
        ({"min_epochs": 5}, "min_epochs 5: more than max_epochs, which is 3"),
        ({"min_epochs": 0}, "min_epochs 0: expected a whole number of at least 1"),
        ({"max_epochs": 2.5}, "max_epochs 2.5: expected a whole number of at least 1"),
        ({"inner_folds": []}, "inner_folds []: expected one or more"),
        ({"inner_folds": [0, 3]}, "inner_fold 3: this cohort has inner_folds 0 to 2"),
        ({"fold": 7}, "fold 7: this cohort has folds 0 to 2"),
        ({"sampler": "tpee"}, "ValueError: By 'tpee', did you mean 'tpe'?"),
        ({"pruner": "hyperband"}, "ValueError: Unsupported option 'hyperband', Available options are {"),
        ({"direction": "up"}, "ValueError: Unsupported option 'up'"),
        ({"reduction_factor": 1}, "ValueError: The value of `reduction_factor` is 1"),
        ({"study_name": "../../x"}, "study_name '../../x': names a folder; use letters"),
        ({"storage": "study.db"}, "storage study.db: cannot be used ("),
        ({"storage": "sqlite:////nowhere/study.db"}, "storage sqlite:////nowhere/study.db: cannot be used ("),
        ({"storage": "oracul://me:secret@host/db"}, "storage oracul://me:***@host/db: cannot be used ("),
        ({"storage": "postgresql+psycopg://me:secret@localhost:1/db"}, "storage postgresql+psycopg://me:***@localho"),
        ({"overrides": {"epoch": 3}}, "epoch: nothing reads this key, did you mean epochs?"),
        ({"overrides": {"+epoch": {"a": 3}}}, "epoch: nothing reads this key, did you mean epochs?"),
        ({"overrides": {"channels": 3}}, "overrides#channels: the space draws this key; leave it out of one"),
        ({"space": {}}, "space: is empty; give at least one key with its range"),
        ({"max_retry": -1}, "max_retry -1 is less than the minimum of 0"),
        ({"overrides": {"epochs": 3}}, "overrides#epochs: the search sets this itself"),
        ({"overrides": {"+output_dir": "x"}}, "overrides#output_dir: the search sets this itself"),
        ({"space#fold": suggest("int", low=0, high=2)}, "space#fold: the search sets this itself"),
        ({"space#channel": suggest("int", low=1, high=2)}, "channel: nothing reads this key, did you mean channels?"),
        ({"space#channels#low": 9}, "space#channels: ValueError: `low <= high` must hold, but got (low=9, high=3)"),
        ({"space#learning_rate#low": 0.0}, "space#learning_rate: ValueError: `low > 0` must hold for `log=True`"),
        ({"space#dropout": suggest("float", low=0)}, "space#dropout: TypeError: Trial.suggest_float() missing 1"),
        ({"space#dropout": 0.1}, "space#dropout: TypeError: 'float' object is not callable; see docs/search.md"),
        ({"space#dropout": suggest("categorical", choices=[])}, "space#dropout: ValueError: The `choices` must"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_the_first_trial(
    refusal: Callable, tmp_path: Path, flags: dict, line: str
) -> None:
    said = refusal(tmp_path / "hpo", **flags)
    assert said.startswith(line)
    assert "\n" not in said
    assert "secret" not in said
    assert not (tmp_path / "hpo" / "trials").exists()


@pytest.mark.parametrize("key", ["epochs", "output_dir", "ckpt_dir", "fold", "inner_fold", "resume", "val_interval"])
def test_what_the_search_sets_itself_is_no_override(key: str) -> None:
    with pytest.raises(ValueError, match=f"overrides#{key}: the search sets this itself, leave it out"):
        check_space({}, {key: 1}, {})


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (-1.0, 0.5)])
def test_both_ends_of_a_range_must_be_trainable(refusal: Callable, tmp_path: Path, low: float, high: float) -> None:
    said = refusal(tmp_path / "hpo", **{"space#dropout": suggest("float", low=low, high=high)})
    assert "dropout" in said
    assert not (tmp_path / "hpo").exists()


def test_every_hyperparameter_can_be_in_the_space(coarse_dir: Path) -> None:
    recipe = json.loads(Path(TRAIN).read_text())
    space = {}
    for name in ("channels", "batch_size", "dropout", "label_smoothing", "seed", "accumulation_steps"):
        whole = isinstance(recipe[name], int)
        space[name] = suggest("int", low=1, high=3) if whole else suggest("float", low=0.0, high=0.5)
    parser = ConfigParser({"space": space})
    check_space(parser.get_parsed_content("space"), {}, {"dataset_dir": str(coarse_dir)})


def test_a_scan_that_cannot_be_read_is_found_before_the_first_trial(
    refusal: Callable, coarse_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(coarse_dir, tmp_path / "cohort")
    scan = next(s for s in json.loads((coarse_dir / "datalist.json").read_text())["training"] if s["fold"] != 0)
    (tmp_path / "cohort" / scan["image"]).write_text("no scan")
    said = refusal(tmp_path / "hpo", dataset_dir=str(tmp_path / "cohort"))
    assert said.startswith(f"{tmp_path / 'cohort' / scan['image']}: not a readable NIfTI image")
    assert not (tmp_path / "hpo").exists()
