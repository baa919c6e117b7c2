"""Overrides mean what was typed: Fire reads ``Study #2`` as ``Study``, and JSON's true, false and null as texts."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monai.bundle
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.bundle.reference_resolver import ReferenceResolver

from scripts.common.errors import InputError, print_cause

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COMMAND_LINES = (str(Path(monai.bundle.__file__).with_name("__main__.py")), str(Path(__file__).with_name("command.py")))
WORDS = {"true": True, "false": False, "none": None, "null": None}  # what a command line cannot say otherwise
# How keys end that hold a path or another text, where the shipped value is an expression or null.
TEXTS = ("dir", "path", "input", "datalist", "weights", "teacher", "root", "name", "uri", "storage", "only", "reference")


def as_given() -> None:
    """Let the config that this is part of say what was typed; nothing of it may have been read before.

    On MONAI's command line, or one of our own, a key whose shipped value is a text or a path takes the text as it was
    typed. Wherever the shipped value is no text, the words true, false and none become what they mean; below a block,
    where nothing is shipped, true and false do. There, too, an uncaught exception is one line from now on, unless
    ``debug`` is true; a program that uses the bundle keeps its own tracebacks.

    Raises:
        InputError: a value with another meaning was read before.
    """
    parser, frames = enclosing_parser(), inspect.stack(context=0)
    is_command = any(frame.filename in COMMAND_LINES for frame in frames)
    own = any(getattr(frame.frame.f_locals.get("self"), "__dict__", {}).get("parser") is parser for frame in frames)
    shipped = shipped_parts(parser.get())
    for key, text in typed(sys.argv[1:]).items() if is_command and own else ():
        default, meant = _shipped(shipped, key), _as_typed(text)
        if DefaultParseValue(text) is None and default is not _NOTHING and not _is_text(default):
            _put(parser, key, None)  # MONAI has left it out
        elif key in parser and parser[key] == (read := DefaultParseValue(text)) != meant:
            if isinstance(read, str) or _takes_text(key, default):
                _put(parser, key, meant)
    for key, word in list(_words(parser.get())):
        default, meant = _shipped(shipped, key), WORDS[word.lower()]
        plain = default is None or isinstance(default, bool | int | float)
        if plain if meant is None or default is None else not _takes_text(key, default):
            _put(parser, key, meant)
    if is_command and parser.get("debug") is not True and sys.excepthook is sys.__excepthook__:
        sys.excepthook = print_cause


def enclosing_parser() -> ConfigParser:
    """The parser that is calling us: MONAI gives a config no reference to itself."""
    for frame in inspect.stack(context=0):
        parser = frame.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
    raise RuntimeError("this can only be called by a MONAI config")


def shipped_parts(config: dict) -> list[dict]:
    """The bundle's own configs that are in this one, the recipe before its overlays."""
    paths = (path for path in sorted(CONFIGS.glob("*.json")) if path.name != "metadata.json")
    contents = sorted(map(ConfigParser.load_config_file, paths), key=len, reverse=True)
    return [content for content in contents if all(key in config for key in content if key.isidentifier())]


def is_computed(value: Any) -> bool:
    """Whether the config makes something else of a value: a block, an expression, a reference or a macro."""
    return isinstance(value, dict) or (isinstance(value, str) and value[:1] in ("$", "@", "%"))


def typed(arguments: list[str]) -> dict[str, str]:
    """The texts behind a command line's flags, as Fire takes them apart: ``--key text`` or ``--key=text``."""
    found = {}
    for flag, following in zip(arguments, [*arguments[1:], None], strict=True):
        if match := re.fullmatch(r"--?([a-zA-Z][^=]*)(?:=(.*))?", flag, re.DOTALL):
            key, text = match[1].replace("-", "_"), match[2] if match[2] is not None else following
            if text is not None and (match[2] is not None or not re.match("--|-[a-zA-Z]", text)):
                found[key] = text
    return found


def _as_typed(text: str) -> Any:
    """A text as it was typed; a list or a tuple in brackets, or a text in quotes, as Python reads it."""
    try:
        value = ast.literal_eval(text.strip()) if text.strip()[:1] in ("[", "(", "'", '"') else text
    except (SyntaxError, ValueError):
        value = DefaultParseValue(text) if text.startswith(("[", "(")) and text.endswith(("]", ")")) else text
    return value


_NOTHING = object()


def _shipped(parts: list[dict], key: str) -> Any:
    """The shipped value at ``key``, such as "train#report"; ``_NOTHING`` if there is none."""
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
    named = re.split("[#:_]", key)[-1] in TEXTS
    return _is_text(default) or (named and (default is _NOTHING or default is None or is_computed(default)))


def _words(config: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """The keys and values that are a word, at any depth of the blocks."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _words(value, f"{above}{key}#")
        elif isinstance(value, str) and value.lower() in WORDS:
            yield f"{above}{key}", value


def _put(parser: ConfigParser, key: str, value: Any) -> None:
    """Change a value that nothing has read."""
    id, before = ReferenceResolver.normalize_id(key), parser.get(key)
    read = [name for name in parser.ref_resolver.resolved_content if id == name or id.startswith(f"{name}::")]
    if read:
        raise InputError(f"{key} {before!r}: was read before the config was checked; give {value!r}, or ask for config first")
    block, last = parser, key
    *above, last = ReferenceResolver.split_id(key)
    block = parser.get()
    for name in above:
        block = block[name]
    block[last] = value
    if id in parser.ref_resolver.items:
        parser.ref_resolver.items[id].update_config(value)
