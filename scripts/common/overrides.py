"""Give a config the overrides that were typed, where Fire or MONAI has read something else.

Fire reads ``Study #2`` as ``Study`` and ``false`` as a text; MONAI reads ``Study #2`` as ``Study ::2``.
"""

import functools
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigExpression, ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from scripts.common import CONFIGS
from scripts.common.command import as_typed, typed_flags
from scripts.common.errors import InputError, print_cause

COMMAND_LINES = (str(Path(monai.bundle.__file__).with_name("__main__.py")), str(Path(__file__).with_name("command.py")))
WORDS = {"true": True, "false": False, "none": None, "null": None}  # what a command line cannot say otherwise
# How keys end that hold a path or another text, where the shipped value is an expression or null.
TEXTS = "(.*[#:_])?(cache|dir|path|input|datalist|weights|teacher|root|name|uri|storage|only|reference)"


def as_given() -> None:
    """Change the config that this is part of to what was typed; nothing of it may have been read before.

    On MONAI's command line, or one of our own, a key whose shipped value is a text or a path takes the text as it was
    typed. Wherever the shipped value is no text, the words true, false and none become what they mean. Where nothing is
    shipped, true and false do; none does if it was typed there, since a file or a program can say null. On a command
    line, an uncaught exception is one line from now on, unless ``debug`` is true. A program that uses the bundle keeps
    its own tracebacks.

    Raises:
        InputError: a value with another meaning was read before, or MONAI has left out what was typed.
    """
    parser = enclosing_parser()
    frames = inspect.stack(context=0)
    is_command = any(frame.filename in COMMAND_LINES for frame in frames)
    own = any(getattr(frame.frame.f_locals.get("self"), "__dict__", {}).get("parser") is parser for frame in frames)
    if is_command and sys.excepthook in (sys.__excepthook__, print_cause):
        sys.excepthook = sys.__excepthook__ if str(parser.get("debug")).lower() == "true" else print_cause
    shipped = shipped_parts(parser.get())
    settled = set()
    for key, text in typed_flags(sys.argv[1:]).items() if is_command and own else ():
        default = _shipped(shipped, key)
        read = DefaultParseValue(text)
        meant = as_typed(text)
        if WORDS.get(text.lower(), True) is None and not _takes_text(key, default):
            meant = None
        if read is None and "#" in key and key not in parser:
            raise InputError(f"{key} {text}: MONAI leaves this out; type {text.lower()}")
        if read is None and key in parser and default is not _NOTHING and not _is_text(default):
            _put(parser, key, None)  # MONAI has left it out
        elif key in parser and _with_marks(parser[key]) == _with_marks(read) and not is_computed(meant):
            if isinstance(read, str) or _takes_text(key, default):
                _put(parser, key, meant)
            settled.add(key)
    for key, value in list(_values(parser.get())):
        default = _shipped(shipped, key)
        word = value.lower() if isinstance(value, str) else ""
        plain = default is None or isinstance(default, bool | int | float)
        if word in WORDS and (plain if WORDS[word] is None else not _takes_text(key, default)):
            _put(parser, key, WORDS[word])
        elif key not in settled and not is_computed(value) and _takes_text(key, default):
            _put(parser, key, _with_marks(value))


def enclosing_parser() -> ConfigParser:
    """Return the parser that is calling us; MONAI gives a config no reference to itself."""
    for frame in inspect.stack(context=0):
        parser = frame.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
    raise RuntimeError("this can only be called by a MONAI config")


def shipped_parts(config: dict) -> list[dict]:
    """Return the bundle's own configs that are in this one, the recipe before its overlays."""
    return [content for content in _shipped_configs() if all(key in config for key in content if key.isidentifier())]


@functools.cache
def _shipped_configs() -> list[dict]:
    paths = [*sorted(CONFIGS.glob("*.json")), *sorted(CONFIGS.glob("overlays/*.json"))]
    paths = (path for path in paths if path.name != "metadata.json")
    return sorted(map(ConfigParser.load_config_file, paths), key=len, reverse=True)


def is_computed(value: Any) -> bool:
    """Return whether the config makes something else of a value: a block, an expression, a reference or a macro."""
    return isinstance(value, dict) or (isinstance(value, str) and value[:1] in ("$", "@", "%"))


_NOTHING = object()


def _shipped(parts: list[dict], key: str) -> Any:
    """Return the shipped value at ``key``, such as "train#report"; ``_NOTHING`` if there is none."""
    for part in parts:
        if key in part:
            return part[key]
        value = part
        for name in ReferenceResolver.split_id(key):
            value = value.get(name, _NOTHING) if isinstance(value, dict) else _NOTHING
        if value is not _NOTHING:
            return value
    return _NOTHING


def _is_text(default: Any) -> bool:
    return isinstance(default, str) and not is_computed(default)


def _takes_text(key: str, default: Any) -> bool:
    named = default is _NOTHING or default is None or is_computed(default)
    return _is_text(default) or (named and re.fullmatch(TEXTS, key) is not None)


def _values(config: dict, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of the blocks, at any depth, that are texts or lists."""
    for key, value in config.items():
        if isinstance(value, dict) and key != "_meta_":
            yield from _values(value, f"{above}{key}#")
        elif isinstance(value, str | list):
            yield f"{above}{key}", value


def _with_marks(value: Any) -> Any:
    """Return texts with the ``#`` for which MONAI wrote ``::``, its own mark; addresses stay."""
    if isinstance(value, list | tuple):
        return [_with_marks(item) for item in value]
    return value.replace("::", "#") if isinstance(value, str) and "://" not in value else value


def _put(parser: ConfigParser, key: str, value: Any) -> None:
    """Change a value that nothing has read. MONAI writes ``::`` again as it resolves a text, so that is done here."""
    *above, last = ReferenceResolver.split_id(key)
    resolver = parser.ref_resolver
    id = ReferenceResolver.normalize_id(key)
    block = parser[ReferenceResolver.sep.join(above)]
    if block.get(last, _NOTHING) == value:
        return
    if any(id == name or id.startswith(f"{name}::") for name in resolver.resolved_content):
        raise InputError(
            f"{key} {block[last]!r}: was read before it was checked; give {value!r}, or ask for config first"
        )
    if "#" not in str(value):
        block[last] = value
        resolver.items[id].update_config(value)
    elif above:
        block[last] = "$" + repr(value).replace("#", r"\x23")
        resolver.items[id] = ConfigExpression(block[last], id)
    else:
        block[last] = resolver.resolved_content[id] = value
