"""MONAI takes any override in silence: this refuses misspelt keys and values of another kind, each in a line."""

import inspect
import json
import logging
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

from scripts.common.errors import InputError, print_cause
from scripts.common.menus import apply_menus

logger = logging.getLogger("meshnet")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WORDS = {"true": True, "false": False, "none": None, "null": None}  # what a command line cannot say otherwise


class Config(dict):
    """A config with its macros resolved, nothing instantiated."""

    parser: ConfigParser

    def resolved(self, key: str) -> Any:
        """The config at ``key`` with its references replaced by their values, in terms of JSON."""
        self.parser.get_parsed_content(key)
        return json.loads(json.dumps(self.parser.ref_resolver.get_item(key).get_config(), default=str))


def check_config() -> Config:
    """Check the config that this is part of, overlays and overrides included; the first thing that a run does.

    A key of the top level, or of a plain block like ``train``, must be in the shipped config or be read by another
    value (``@key``): what nothing reads is a misspelling. A value that stands there as it is (no expression, no
    reference) must be of the kind of the shipped default; its range is the business of what takes it. The words true,
    false and none become what they mean where no text is expected.

    Unless ``debug`` is true, an uncaught exception is a line about its first cause from now on.

    Raises:
        InputError: one line per problem.
    """
    parser = _enclosing_parser()
    config = parser.get()
    if WORDS.get(str(config.get("debug")).lower()) is not True and sys.excepthook is sys.__excepthook__:
        sys.excepthook = print_cause
    shipped, training = _shipped_parts(config), {}
    if "train" in config:
        recipe = ConfigParser.load_config_file(CONFIGS / "train.json")
        training = apply_menus(parser, recipe) | recipe
        shipped.append(training)
    problems = [*_unread_keys(config, shipped), *_wrong_kinds(parser, shipped)]
    if problems:
        raise InputError("\n".join(problems))
    for line in _without_effect(config, training) if "evaluating" not in config else ():
        logger.warning(line)
    checked = Config(config)
    checked.parser = parser
    return checked


def _enclosing_parser() -> ConfigParser:
    """The parser that is calling us: MONAI gives a config no reference to itself."""
    for frame in inspect.stack(context=0):
        parser = frame.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
    raise RuntimeError("check_config can only be called by a MONAI config")


def _shipped_parts(config: dict) -> list[dict]:
    """The bundle's own configs that are in this one, the recipe before its overlays."""
    paths = (path for path in sorted(CONFIGS.glob("*.json")) if path.name != "metadata.json")
    contents = sorted(map(ConfigParser.load_config_file, paths), key=len, reverse=True)
    return [content for content in contents if all(key in config for key in content if key.isidentifier())]


def _unread_keys(config: dict, shipped: list[dict]) -> Iterator[str]:
    references = [reference.split(ID_SEP_KEY) for reference in _references(config)]
    tracking = set(DEFAULT_MLFLOW_SETTINGS["configs"])

    def search(block: dict, above: list[str], shipped: list[dict]) -> Iterator[str]:
        for key, value in block.items():
            path, name = [*above, key], "#".join([*above, key])
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


def _without_effect(config: dict, shipped: dict) -> Iterator[str]:
    """Values that differ from the shipped ones and are ours, but that what was chosen does not read."""
    read = {ReferenceResolver.split_id(reference)[0] for reference in _references(config)}
    for key, value in config.items():
        chooses = key == "debug" or key.endswith("_name") or key.startswith("_") or _is_program(value)  # read by us
        if key in shipped and value != shipped[key] and key not in read and not chooses:
            yield f"{key} {value}: has no effect, nothing that was chosen reads it"


def _is_program(value: Any) -> bool:
    """Whether a value is there to be run, like ``initialize`` or ``run``."""
    return isinstance(value, list) and all(isinstance(item, str) and item.startswith("$") for item in value)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from ReferenceResolver.match_refs_pattern(value)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def _wrong_kinds(parser: ConfigParser, shipped: list[dict]) -> Iterator[str]:
    """Problems of the top level's plain values; words that stand for a boolean or for none are replaced on the way."""
    config = parser.get()
    for key in [key for key in dict.fromkeys(key for part in shipped for key in part) if key in config]:
        value, default = config[key], next(part[key] for part in shipped if key in part)
        if isinstance(value, str) and value.lower() in WORDS and isinstance(default, bool | int | float | None):
            value = config[key] = WORDS[value.lower()]
            parser.ref_resolver.items[key].update_config(value)
        kind = _kind(default)
        if kind and value is not None and not _is_computed(value) and not kind[1](value):
            yield f"{key} {value!r}: expected {kind[0]}, like the shipped {json.dumps(default)}"


def _is_computed(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value[:1] in ("$", "@", "%"))


def _kind(default: Any) -> tuple[str, Any] | None:
    """What a value must be where ``default`` is shipped: words for it, and the test; None where anything may stand."""
    if isinstance(default, bool):
        return "true or false", lambda value: isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return "a finite number", lambda v: isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v)
    if isinstance(default, str) and not _is_computed(default):
        return "a text", lambda value: isinstance(value, str)
    return None
