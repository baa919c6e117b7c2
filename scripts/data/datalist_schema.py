"""Read a datalist.json, with a line for every field that is not as datalist.schema.json beside this file says."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.json_file import StrictValidator, read_json

SCHEMA = json.loads(Path(__file__).with_name("datalist.schema.json").read_text())
SCAN = SCHEMA["properties"]["training"].pop("items")  # each is checked by itself, so that a line can name it


def read_datalist(path: Path, root: Path | None = None) -> dict:
    """The content of the ``datalist.json`` at ``path``, every field checked; its paths start at ``root``, if given.

    Raises:
        InputError: the file or a field is not usable; the message has one line per problem.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; write it with `python scripts/prepare_datalist.py --dataset_dir DIR`")
    content = read_json(path, "write it again with scripts/prepare_datalist.py")
    problems, good = _wrong_fields(content, SCHEMA), {}
    usable, scans = not problems, content.get("training") if isinstance(content, dict) else None
    for i, scan in enumerate(scans if isinstance(scans, list) else []):
        entry = f"training[{i}] ({scan.get('subject')})" if isinstance(scan, dict) else f"training[{i}]"
        wrong = _wrong_fields(scan, SCAN)
        problems += [f"{entry}: {line}" for line in wrong]
        good |= {} if wrong else {entry: scan}
    if usable:
        problems += _contradictions(content["outer_folds"], content["inner_folds"], good)
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    for scan in scans if root else []:
        scan |= {key: str(root / scan[key]) for key in ("image", "label")}
        if "contrasts" in scan:
            scan["contrasts"] = {name: str(root / path) for name, path in scan["contrasts"].items()}
    return content


def _wrong_fields(value: object, schema: dict) -> list[str]:
    """A line for each field of ``value`` that is missing or not as its description says."""
    if not isinstance(value, dict):
        return ["expected an object"]
    missing = [f"{key} is missing" for key in schema["required"] if key not in value]
    wrong = dict.fromkeys(e.absolute_path[0] for e in StrictValidator(schema).iter_errors(value) if e.absolute_path)
    rules = schema["properties"]
    return missing + [f"{key} is {value[key]!r}, expected {rules[key]['description']}" for key in wrong]


def _contradictions(n_outer: int, n_inner: int, scans: dict[str, dict]) -> Iterator[str]:
    """What no schema sees: folds that do not exist, and what is there twice, however its path is spelt."""
    taken: set[tuple[str, str]] = set()
    folds_of: dict[str, tuple] = {}
    for entry, scan in scans.items():
        fold, folds = scan["fold"], scan["inner_folds"]
        given = [("image", path) for path in (scan["image"], *scan.get("contrasts", {}).values())]
        files = {(key, os.path.normpath(path)): path for key, path in [*given, ("label", scan["label"])]}
        for (key, _), path in [item for item in files.items() if item[0] in taken]:
            yield f"{entry}: {key} {path} is in the datalist twice"
        taken |= files.keys()
        if fold >= n_outer:
            yield f"{entry}: fold is {fold}, expected 0 to {n_outer - 1}"
        elif [k is None for k in folds] != [k == fold for k in range(n_outer)] or not {*folds} <= {
            None,
            *range(n_inner),
        }:
            expected = f"{n_outer} values from 0 to {n_inner - 1}, null at the scan's own fold {fold}"
            yield f"{entry}: inner_folds is {folds}, expected {expected}"
        elif folds_of.setdefault(scan["subject"], (fold, folds)) != (fold, folds):
            yield f"{entry}: another scan of this subject is in another fold"
