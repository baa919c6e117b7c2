"""Run a function as a command: every flag understood before anything happens, every error a line."""

import inspect
import sys
from collections.abc import Callable
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any

import fire

from scripts.common.errors import print_cause

BOOLEANS = {"true": True, "false": False}


def run_command(function: Callable) -> Any:
    """Run ``function`` with the command line's arguments; return what it returns.

    Fire calls a function before it complains of an unknown flag; here nothing is done then, and the exit status is 2.
    It reads ``--flag false`` as a text; here it is False where the default is a boolean.
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

    sys.excepthook = print_cause
    wants_help = {"-h", "--help"} & set(sys.argv[1:])  # a function that takes any flag would take this one
    return fire.Fire(request, ["--", "--help"] if wants_help else None, serialize=lambda request: None).call()
