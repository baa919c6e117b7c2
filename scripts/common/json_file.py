"""JSON files that people or other programs wrote: an error names the file, the key and what is wrong."""

import json
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, validators

from scripts.common.errors import InputError, one_line


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema takes 1.0 as an integer, and jsonschema infinity as a number; torch and MONAI do not.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer})
RANGES = json.loads(Path(__file__).with_name("ranges.json").read_text())  # JSON Schema of configs' values, by key
StrictValidator = validators.extend(Draft202012Validator, type_checker=_TYPES)


def read_json(path: str | Path, hint: str) -> Any:
    """The content of the JSON file at ``path``.

    Raises:
        InputError: it cannot be read or is not JSON; the line ends with ``hint``.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {hint}") from error


def check_json(path: str | Path, content: Any, schema: dict, hint: str) -> None:
    """Raise InputError, a line for each problem, unless the ``content`` of ``path`` fits ``schema`` (JSON Schema)."""
    lines = [f"{path}: {problem}; {hint}" for problem in problems_of(content, schema)]
    if lines:
        raise InputError("\n".join(lines))


def problems_of(content: Any, schema: dict) -> Iterator[str]:
    """Where the ``content`` does not fit ``schema``, and how: "spacing[1] 0 is less than the minimum of 1"."""
    for problem in StrictValidator(schema).iter_errors(content):
        yield " ".join([_name(problem.absolute_path), one_line(problem.message)]).strip()


def _name(steps: Iterable[str | int]) -> str:
    """For example training[3]#image."""
    return "".join(f"[{step}]" if isinstance(step, int) else f"#{step}" for step in steps).removeprefix("#")
