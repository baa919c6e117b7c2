"""Run a function as a command: it understands every flag before it begins, and an error is a line."""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import fire
from fire.parser import DefaultParseValue

from scripts.common import CONFIGS
from scripts.common.errors import print_cause

BOOLEANS = {"true": True, "false": False}


def run_command(function: Callable) -> Any:
    """Run ``function`` with the command line's arguments; return what it returns.

    Fire calls a function before it complains of an unknown flag; here nothing is done then, and the exit status is 2.
    It reads ``--flag false`` as a text; here it is False where the default is a boolean. It reads ``Study #2`` as
    ``Study`` and ``2024_01`` as a number; here an argument that is annotated as a text is the text that was typed.
    """
    signature = inspect.signature(function)
    flags = {name for name, parameter in signature.parameters.items() if isinstance(parameter.default, bool)}

    @wraps(function)
    def request(*args: Any, **options: Any) -> SimpleNamespace:
        given = signature.bind(*args, **options)  # Fire hands over flags by their places
        for name in flags & given.arguments.keys():
            value = given.arguments[name]
            given.arguments[name] = BOOLEANS.get(str(value).lower(), value)
            if not isinstance(given.arguments[name], bool):
                raise fire.core.FireError(f"--{name} {value}: expected true or false")
        return SimpleNamespace(call=partial(function, *given.args, **given.kwargs))

    texts = {name: _text for name, parameter in signature.parameters.items() if parameter.annotation is str}
    texts |= {name: _text_or_none for name, p in signature.parameters.items() if p.annotation == str | None}
    sys.excepthook = print_cause
    wants_help = {"-h", "--help"} & set(sys.argv[1:])  # a function that takes any flag would take this one
    command = fire.decorators.SetParseFns(**texts)(request)
    return fire.Fire(command, ["--", "--help"] if wants_help else None, serialize=lambda request: None).call()


def run_config(names: Sequence[str], overlay: str | None, run_id: str | None = None, /, **overrides: Any) -> None:
    """Run the bundle's configs of these ``names`` under a user's ``overlay``, a config file, and ``overrides``."""
    import monai  # seconds, which a page that is served does not need

    configs = [*(str(CONFIGS / name) for name in names), *([overlay] if overlay else [])]
    meta_file = str(CONFIGS / "metadata.json")
    monai.bundle.run(config_file=configs, meta_file=meta_file, **{"run_id": run_id, **overrides})


def typed_flags(arguments: list[str]) -> dict[str, str]:
    """Return the texts behind a command line's flags, as Fire takes them apart: ``--key text`` or ``--key=text``."""
    found = {}
    for flag, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        if match := re.fullmatch(r"--?([a-zA-Z][^=]*)(=.*)?", flag, re.DOTALL):
            text = match[2][1:] if match[2] else following
            if match[2] or not re.match("--|-[a-zA-Z]", text):
                found[match[1].replace("-", "_")] = text
    return found


def as_typed(text: str) -> Any:
    """Return a text as it was typed, but read quotes and brackets as Fire does, as a text and a list."""
    if text[:1] + text[-1:] not in ("''", '""', "[]", "()"):
        return text
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = DefaultParseValue(text)
    return value


def _text(text: str) -> Any:
    if text in ("True", "False") and not any(word.rpartition("=")[2] == text for word in sys.argv):
        raise fire.core.FireError("A flag for a text has none behind it")
    return as_typed(text)


def _text_or_none(text: str) -> Any:
    return None if text == "None" else _text(text)
