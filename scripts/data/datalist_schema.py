"""Reads a datalist.json, with a line for every field that is not as datalist.schema.json beside this file says."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.json_file import StrictValidator, read_json

SCHEMA = json.loads(Path(__file__).with_name("datalist.schema.json").read_text())
HINT = "write it again with scripts/prepare_datalist.py"


def read_datalist(path: Path) -> dict:
    """The content of the ``datalist.json`` at ``path``, every field checked.

    Raises:
        InputError: the file or a field is not usable; the message has one line per problem.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; write it with `python scripts/prepare_datalist.py --dataset_dir DIR`")
    content = read_json(path, HINT)
    check_fields(path, content)
    return content


def check_fields(path: Path, content: dict) -> None:
    """Raise an ``InputError`` with a line for every field of a datalist that is wrong; messages call it ``path``."""
    wrong: dict[str, None] = {}  # an ordered set: a list with two wrong items is one problem
    bad_scans: set[int | None] = set()  # None is the datalist itself
    for error in StrictValidator(SCHEMA).iter_errors(content):
        where, entry, holder, fields, index = list(error.absolute_path), "", content, SCHEMA["properties"], None
        if len(where) > 1 and where[0] == "training":
            _, index, *where = where
            entry, holder = f"{_name(content, index)}: ", content["training"][index]
            fields = SCHEMA["$defs"]["scan"]["properties"]
        bad_scans.add(index)
        if where:
            wrong[f"{entry}{where[0]} is {holder[where[0]]!r}, expected {fields[where[0]]['description']}"] = None
        elif error.validator == "required":
            wrong |= {f"{entry}{key} is missing": None for key in error.validator_value if key not in holder}
        else:
            wrong[f"{entry}expected an object"] = None
    if None not in bad_scans:
        wrong |= dict.fromkeys(_contradictions(content, bad_scans))
    if wrong:
        raise InputError("\n".join(f"{path}: {problem}" for problem in wrong))


def _name(content: dict, index: int) -> str:
    scan = content["training"][index]
    return f"training[{index}] ({scan.get('subject')})" if isinstance(scan, dict) else f"training[{index}]"


def _contradictions(content: dict, bad_scans: set) -> Iterator[str]:
    """What no schema sees: folds that do not exist, and what is there twice, however its path is spelt."""
    outer, inner = range(content["outer_folds"]), range(content["inner_folds"])
    taken: set[tuple[str, str]] = set()
    folds_of: dict[str, tuple] = {}
    for i, scan in enumerate(content["training"]):
        if i in bad_scans:
            continue
        entry, fold, folds = _name(content, i), scan["fold"], scan["inner_folds"]
        paths = {(key, os.path.normpath(scan[key])) for key in ("image", "label")}
        for key, _ in sorted(paths & taken):
            yield f"{entry}: {key} {scan[key]} is in the datalist twice"
        taken |= paths
        if fold not in outer:
            yield f"{entry}: fold is {fold}, expected 0 to {outer[-1]}"
        elif [k is None for k in folds] != [k == fold for k in outer] or not {*folds} <= {None, *inner}:
            expected = f"{len(outer)} values from 0 to {inner[-1]}, null at the scan's own fold {fold}"
            yield f"{entry}: inner_folds is {folds}, expected {expected}"
        elif folds_of.setdefault(scan["subject"], (fold, folds)) != (fold, folds):
            yield f"{entry}: another scan of this subject is in another fold"
