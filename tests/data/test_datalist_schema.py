"""A datalist that is wrong is refused, with a line for each field that names its entry and what is expected."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from jsonschema import Draft202012Validator

from scripts.common.errors import InputError
from scripts.data.datalist_schema import read_datalist
from tests.data.conftest import datalist


def read(root: Path, content: dict) -> dict:
    (root / "datalist.json").write_text(json.dumps(content))
    return read_datalist(root / "datalist.json")


def entry(**change: object) -> Callable[[dict], None]:
    return lambda content: content["training"][4].update(change)


def top(**change: object) -> Callable[[dict], None]:
    return lambda content: content.update(change)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (top(spacing=[1, 1]), r"spacing is \[1, 1\], expected three positive numbers of mm"),
        (top(spacing=[1, 1, 0]), r"spacing is \[1, 1, 0\], expected three positive numbers of mm"),
        (top(spacing=[1, True, math.inf]), r"spacing is \[1, True, inf\], expected three positive numbers of mm"),
        (
            top(spatial_size=[256, 256, 2.0]),
            r"spatial_size is \[256, 256, 2.0\], expected three positive whole numbers",
        ),
        (top(name=3), "name is 3, expected a text"),
        (top(outer_folds=True), "outer_folds is True, expected a whole number, at least 1"),
        (top(training=[]), r"training is \[\], expected a list of at least one scan"),
        (lambda content: content.pop("spacing"), "spacing is missing"),
        (lambda content: content["training"].append(7), r"training\[9\]: expected an object"),
        (lambda content: content["training"][4].pop("label"), r"training\[4\] \(4\): label is missing"),
        (entry(lesion_volume="big"), r"training\[4\] \(4\): lesion_volume is 'big', expected a number of mm3"),
        (entry(fold=3), r"training\[4\] \(4\): fold is 3, expected 0 to 2"),
        (entry(inner_folds=[0, None]), r"training\[4\] \(4\): inner_folds is \[0, None\], expected 3 values"),
        (entry(inner_folds=[0, 1, 1]), r"training\[4\] \(4\): inner_folds is \[0, 1, 1\], .*null at .* own fold 1"),
        (entry(inner_folds=[3, None, 1]), r"training\[4\] \(4\): inner_folds is \[3, None, 1\]"),
        (entry(subject="0"), r"training\[4\] \(0\): another scan of this subject is in another fold"),
        (entry(fold=1.0), r"training\[4\] \(4\): fold is 1.0, expected a whole number"),
        (entry(image="sub-0.nii.gz"), r"training\[4\] \(4\): image sub-0.nii.gz is in the datalist twice"),
        (
            entry(image="./a/../sub-0.nii.gz"),
            r"training\[4\] \(4\): image ./a/../sub-0.nii.gz is in the datalist twice",
        ),
        (entry(contrasts={}), r"training\[4\] \(4\): contrasts is {}, expected paths of images on the grid"),
        (entry(contrasts={"T1w": 3}), r"training\[4\] \(4\): contrasts is {'T1w': 3}, expected paths"),
        (
            entry(contrasts={"T2w": "sub-4.nii.gz", "T1w": "sub-0.nii.gz"}),
            r"training\[4\] \(4\): image sub-0.nii.gz is in the datalist twice",
        ),
        (entry(label="sub-0_mask.nii.gz"), r"training\[4\] \(4\): label sub-0_mask.nii.gz is in the datalist twice"),
    ],
)
def test_a_wrong_field_is_named_with_its_entry(tmp_path: Path, change: Callable, line: str) -> None:
    content = datalist()
    change(content)
    with pytest.raises(InputError, match=f"datalist.json: {line}"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("name", None),
        ("simulated", 0),
        ("spacing", 1.0),
        ("spatial_size", "256"),
        ("outer_folds", "3"),
        ("inner_folds", 3.0),
        ("training", {}),
    ],
)
def test_each_key_of_the_datalist_is_needed_and_has_its_type(tmp_path: Path, key: str, wrong: object) -> None:
    content = datalist()
    with pytest.raises(InputError, match=rf"^\S*datalist.json: {key} is {re.escape(repr(wrong))}, expected "):
        read(tmp_path, {**content, key: wrong})
    del content[key]
    with pytest.raises(InputError, match=rf"^\S*datalist.json: {key} is missing$"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("image", None),
        ("label", 3),
        ("subject", 4),
        ("session", 1),
        ("acquisition", 2.0),
        ("lesion_volume", None),
        ("fold", True),
        ("inner_folds", 0),
    ],
)
def test_each_key_of_a_scan_is_needed_and_has_its_type(tmp_path: Path, key: str, wrong: object) -> None:
    content = datalist()
    name = rf"^\S*datalist.json: training\[4\] \({wrong if key == 'subject' else 4}\)"
    content["training"][4][key] = wrong
    with pytest.raises(InputError, match=rf"{name}: {key} is {re.escape(repr(wrong))}, expected "):
        read(tmp_path, content)
    del content["training"][4][key]
    with pytest.raises(InputError, match=rf"training\[4\] \({None if key == 'subject' else 4}\): {key} is missing$"):
        read(tmp_path, content)


def test_every_wrong_entry_is_a_line(tmp_path: Path) -> None:
    content = datalist()
    content["training"][1]["fold"] = 7
    del content["training"][5]["label"]
    content["training"][8]["image"] = "sub-0.nii.gz"
    with pytest.raises(InputError, match="fold is 7") as error:
        read(tmp_path, content)
    lines = str(error.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["training[1] (1)", "training[5] (5)", "training[8] (8)"]


@pytest.mark.parametrize(("text", "line"), [("{", "not JSON"), ("[]", "expected an object")])
def test_a_file_that_is_no_datalist_is_refused(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "datalist.json").write_text(text)
    with pytest.raises(InputError, match=f"datalist.json: {line}"):
        read_datalist(tmp_path / "datalist.json")


def test_the_schema_is_a_json_schema() -> None:
    schema = json.loads((ROOT / "scripts" / "data" / "datalist.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert Draft202012Validator(schema).is_valid(datalist())
