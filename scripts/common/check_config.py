"""Refuse a config's misspelt keys and values of a wrong kind or range."""

import json
import logging
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

from scripts.common.config import Config
from scripts.common.errors import InputError
from scripts.common.json_file import RANGES, StrictValidator, problems_of
from scripts.common.menus import choices, menus, recipe, values_of_all
from scripts.common.overrides import enclosing_parser, is_computed, shipped_parts

logger = logging.getLogger("meshnet")
KINDS = {  # by the type of the shipped default: in JSON Schema, and for people
    bool: ("boolean", "true or false"),
    int: ("integer", "a whole number"),
    float: ("number", "a finite number"),
    str: ("string", "a text"),
}


def check_config() -> Config:
    """Check the config that this is part of, overlays and overrides included, and return it; nothing is changed.

    A key of the top level, or of a plain block like ``train``, must be in the shipped config or be read by another
    value (``@key``): what nothing reads is a misspelling. A value that stands there as it is (no expression, no
    reference) must be of the kind of the shipped default. It must be in its range of ``allowed_values.json``, as must
    the value of an expression that refers to nothing, like ``$2 ** 4``.

    Raises:
        InputError: one line per problem.
    """
    parser = enclosing_parser()
    config = parser.get()
    shipped = shipped_parts(config)
    blocks, values, problems = {}, {}, []
    if "train" in config:
        shipped.append(values_of_all() | recipe())
        blocks, values, problems = choices(parser)
    checked = Config(parser, blocks, values)
    read = [*_references(checked), "config", *(f"{kind}_name" for kind in menus())]
    problems += [*_unread_keys({**values, **config}, shipped, read), *_wrong_kinds(config, shipped)]
    problems += [] if problems else _out_of_range(parser)
    if problems:
        raise InputError("\n".join(problems))
    for line in _without_effect(config, shipped, read) if "train" in config and "evaluating" not in config else ():
        logger.warning(line)
    return checked


def _unread_keys(config: dict, shipped: list[dict], read: list[str]) -> Iterator[str]:
    references = [reference.split(ID_SEP_KEY) for reference in read]
    tracking = set(DEFAULT_MLFLOW_SETTINGS["configs"])

    def search(block: dict, above: list[str], shipped: list[dict]) -> Iterator[str]:
        for key, value in block.items():
            path = [*above, key]
            name = "#".join(path)
            if not above and (key in tracking or key.startswith("_") or _is_program(value)):
                continue
            read = any(r[: len(path)] == path[: len(r)] for r in references)  # itself, its block or a part of it
            if not read and not any(key in other for other in shipped):  # an overlay may leave our own keys unread
                near = get_close_matches(key, sorted({*block} - {key}), 1)
                hint = f"did you mean {'#'.join([*above, *near])}?" if near else "is it misspelt?"
                yield f'{name}: nothing reads this key, {hint} (a new key is read as "@{name}")'
            elif isinstance(value, dict) and "_target_" not in value and not any(o.get(key) == {} for o in shipped):
                yield from search(value, path, [o[key] for o in shipped if isinstance(o.get(key), dict)])

    return search(config, [], shipped)


def _without_effect(config: dict, shipped: list[dict], read: list[str]) -> Iterator[str]:
    """Say which of the user's values, which differ from those of all ``shipped`` parts, nothing chosen reads."""
    read = {ReferenceResolver.split_id(reference)[0] for reference in read}
    for key, value in config.items():
        if key == "debug" or key.startswith("_") or isinstance(value, dict) or _is_program(value):  # read otherwise
            continue
        same = [ReferenceResolver.normalize_id(str(part[key])) == str(value) for part in shipped if key in part]
        if key in shipped[-1] and not any(same) and key not in read:
            yield f"{key} {value}: has no effect, nothing that was chosen reads it"


def _is_program(value: Any) -> bool:
    """Return whether a value is there to be run, like ``initialize`` or ``run``."""
    return isinstance(value, list) and all(isinstance(item, str) and item.startswith("$") for item in value)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from ReferenceResolver.match_refs_pattern(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def _wrong_kinds(config: dict, shipped: list[dict]) -> Iterator[str]:
    """Say which of the top level's plain values are of another kind than the shipped ones."""
    defaults = {key: value for part in reversed(shipped) for key, value in part.items() if key in config}
    for key, default in defaults.items():
        kind, words = KINDS.get(type(default), ("", ""))
        is_text = key.startswith("_")
        if not kind or is_text or any(value is None or is_computed(value) for value in (default, config[key])):
            continue
        if not StrictValidator({"type": kind}).is_valid(config[key]):
            yield f"{key} {config[key]!r}: expected {words}, like the shipped {json.dumps(default)}"


def _out_of_range(parser: ConfigParser) -> Iterator[str]:
    """Say which of the top level's plain values, and which ends of the intensity scaling, are out of range."""
    config = parser.get()
    plain = {}
    for key in (key for key in config if key in RANGES):
        value = config[key]
        if isinstance(value, str) and value.startswith("$") and "@" not in value:
            value = parser.get_parsed_content(key)
        if value is not None and not is_computed(value):
            plain[key] = value
    yield from problems_of(plain, {"properties": RANGES})
    scaling = config.get("intensity")
    for low, high in (("minv", "maxv"), ("b_min", "b_max"), ("a_min", "a_max"), ("lower", "upper")):
        ends = [scaling.get(end) if isinstance(scaling, dict) else None for end in (low, high)]
        if all(isinstance(end, int | float) for end in ends) and ends[0] >= ends[1]:
            yield f"intensity#{low} {ends[0]}: expected less than intensity#{high}, which is {ends[1]}"
