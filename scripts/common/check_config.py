"""MONAI takes any override in silence and reports an error as pages of traceback: here each is a line."""

import inspect
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS, ID_SEP_KEY

from scripts.common.errors import InputError, print_cause

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def check_config(allowed: dict[str, dict], debug: bool | str = False) -> dict:
    """Check the config that this is part of, overlays and overrides included.

    A key of the top level, or of a plain block like ``train``, must be in ``allowed`` or be read by another value
    (``@key``): what nothing reads is a misspelling. A value that stands there as it is (no expression, no reference)
    must fit its key's JSON Schema in ``allowed``.

    Args:
        allowed: a JSON Schema for each key that may be overridden.
        debug: leave Python's tracebacks as they are; else an uncaught exception is a line about its first cause.

    Returns:
        The config with its macros resolved, nothing instantiated.

    Raises:
        InputError: one line per problem.
    """
    config = _enclosing_parser().get()
    if str(debug).lower() != "true" and sys.excepthook is sys.__excepthook__:
        sys.excepthook = print_cause
    problems = [*_unread_keys(config, allowed), *_wrong_values(config, allowed)]
    if problems:
        raise InputError("\n".join(problems))
    return config


def _enclosing_parser() -> ConfigParser:
    """The parser that is calling us: MONAI gives a config no reference to itself."""
    for frame in inspect.stack(context=0):
        parser = frame.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
    raise RuntimeError("check_config can only be called by a MONAI config")


def _unread_keys(config: dict, allowed: dict) -> Iterator[str]:
    references = [reference.split(ID_SEP_KEY) for reference in _references(config)]
    known = {*allowed, *DEFAULT_MLFLOW_SETTINGS["configs"]}

    def search(block: dict, above: list[str], shipped: list[dict]) -> Iterator[str]:
        for key, value in block.items():
            path, name = [*above, key], "#".join([*above, key])
            if not above and (key in known or key.startswith("_") or _is_program(value)):
                continue
            read = any(r[: len(path)] == path[: len(r)] for r in references)  # itself, its block or a part of it
            if not read and not any(key in other for other in shipped):  # an overlay may leave our own keys unread
                near = get_close_matches(key, sorted({*block, *(() if above else allowed)} - {key}), 1)
                hint = f"did you mean {'#'.join([*above, *near])}?" if near else "is it misspelt?"
                yield f'{name}: nothing reads this key, {hint} (a new key is read as "@{name}", or is in "allowed")'
            elif isinstance(value, dict) and "_target_" not in value:
                yield from search(value, path, [o[key] for o in shipped if isinstance(o.get(key), dict)])

    return search(config, [], _shipped_parts(config))


def _shipped_parts(config: dict) -> list[dict]:
    """The bundle's own configs that are in this one."""
    contents = [ConfigParser.load_config_file(path) for path in CONFIGS.glob("[!m]*.json")]  # but the metadata
    return [content for content in contents if all(key in config for key in content if key.isidentifier())]


def _is_program(value: Any) -> bool:
    """Whether a value is there to be run, like ``initialize`` or ``run``."""
    return isinstance(value, list) and all(isinstance(item, str) and item.startswith("$") for item in value)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from ReferenceResolver.match_refs_pattern(value)
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _references(item)


def _wrong_values(config: dict, allowed: dict) -> Iterator[str]:
    for key, schema in allowed.items():
        value = config.get(key)
        computed = isinstance(value, dict) and "_target_" in value
        if key not in config or computed or (isinstance(value, str) and value[:1] in ("$", "@")):
            continue
        if next(Draft202012Validator(schema).iter_errors(value), None) is not None:
            rules = ", ".join(f"{rule} {limit}" for rule, limit in schema.items())
            yield f"{key} {value!r}: not allowed; its rules are: {rules}"
