"""Tell an error's first cause in a line; ``--debug true`` shows Python's traceback."""

import re
import sys
from textwrap import shorten
from types import TracebackType


class InputError(ValueError):
    """What the user gave is wrong: the message is for them, a line for each problem."""


def first_cause(error: BaseException) -> BaseException:
    """Return the ``InputError`` that led to ``error``, else the first error; MONAI and Ignite raise others from it."""
    while not isinstance(error, InputError):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            break
        error = cause
    return error


def describe(error: BaseException) -> str:
    """Describe ``error``'s first cause: an ``InputError``'s own lines, else one line with the cause's type.

    An error that crossed a process (a loader's worker) is told by the last line of the traceback that it carries.
    """
    cause = first_cause(error)
    kind = type(cause).__name__
    message = str(cause)
    if "\nOriginal Traceback" in message:  # torch's ExceptionWrapper
        ends = re.findall(r"^([\w.]+): (.*)", message, re.MULTILINE)
        kind, message = (ends[-1][0].rpartition(".")[2], ends[-1][1]) if ends else (kind, message)
    missing = re.search("No module named '([^']+)'", message) if kind == "OptionalImportError" else None
    hint = f"; pip install {missing[1]}" if missing else ""
    message = re.split(r"\s*(?:For details about installing|Original traceback)", message)[0]  # of MONAI's imports
    return hide_passwords(message if isinstance(cause, InputError) else f"{kind}: {one_line(message)}{hint}")


def one_line(text: str, most: int = 600) -> str:
    """Return ``text`` in one line of at most ``most`` characters, with an ellipsis for words that are left out."""
    return shorten(text, most, placeholder=" …")


def hide_passwords(text: str) -> str:
    """Replace the password of each address in ``text``, such as postgresql://user:password@host, by ***."""
    text = re.sub(r"(://[^:/@\s]*):(?!\d+(/|$|[\s\"']))[^@\s]*@", r"\1:***@", text)
    return re.sub(r"([?&](password|passwd|pwd)=)[^&\s\"']*", r"\1***", text, flags=re.IGNORECASE)


def print_cause(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print what ``describe`` says, and for errors in a config where; an excepthook, so the exit status is 1."""
    if not isinstance(error, Exception):
        return sys.__excepthook__(kind, error, traceback)
    text = describe(error)
    link = error
    where = ""
    while link is not None:
        found = re.findall("component '(?:<function )?([^' ]+)", str(link))
        where = "".join(f" in {name}" for name in found) or where
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if not isinstance(first_cause(error), InputError):
        text = f"{text.replace(':', f'{where}:', 1)} (--debug true shows the traceback)"
    print(text, file=sys.stderr)
    return None
