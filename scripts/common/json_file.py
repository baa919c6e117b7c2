"""Read and check JSON files; an error names the file, the key and what is wrong."""

import json
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, validators

from scripts.common.errors import InputError, one_line
from scripts.common.files import replace_file


def _is_number(_: Any, value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_integer(_: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema takes 1.0 as an integer, and jsonschema infinity as a number; torch and MONAI do not.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer})
# JSON Schema of configs' values, by key.
RANGES = json.loads(Path(__file__).with_name("allowed_values.json").read_text())
StrictValidator = validators.extend(Draft202012Validator, type_checker=_TYPES)


def read_json(path: str | Path, hint: str) -> Any:
    """Return the content of the JSON file at ``path``.

    Raises:
        InputError: it cannot be read or is not JSON; the line ends with ``hint``.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {hint}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); {hint}") from error


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` for people to read; the file is replaced whole."""
    with replace_file(path) as file:
        file.write(json.dumps(content, indent=4) + "\n")


def as_json(value: Any) -> Any:
    """Return ``value`` as JSON has it: tuples become lists, keys texts, and objects the texts that describe them."""
    return json.loads(json.dumps(value, default=str))


def check_json(path: str | Path, content: Any, schema: dict, hint: str) -> None:
    """Raise InputError, a line for each problem, unless the ``content`` of ``path`` fits ``schema`` (JSON Schema)."""
    lines = [f"{path}: {problem}; {hint}" for problem in problems_of(content, schema)]
    if lines:
        raise InputError("\n".join(lines))


def problems_of(content: Any, schema: dict) -> Iterator[str]:
    """Say where ``content`` does not fit ``schema``, and how: "spacing[1] 0 is less than the minimum of 1"."""
    for problem in StrictValidator(schema).iter_errors(content):
        yield " ".join([_name(problem.absolute_path), one_line(problem.message)]).strip()


def _name(steps: Iterable[str | int]) -> str:
    """Return the name of a place, such as training[3]#image."""
    return "".join(f"[{step}]" if isinstance(step, int) else f"#{step}" for step in steps).removeprefix("#")
