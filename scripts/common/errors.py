"""What users see of an error: one line about its first cause; Python's tracebacks stay behind ``--debug true``."""

import re
import sys
from textwrap import shorten
from types import TracebackType


class InputError(ValueError):
    """What the user gave is wrong: the message is for them, a line for each problem."""


def first_cause(error: BaseException) -> BaseException:
    """The ``InputError`` on the way, else the error that the others were raised from; MONAI and Ignite bury both."""
    while not isinstance(error, InputError):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None:
            break
        error = cause
    return error


def describe(error: BaseException) -> str:
    """``error``'s first cause for people: an ``InputError``'s own lines, else one line with the cause's type.

    An error that crossed a process (a loader's worker) is told by the last line of the traceback that it carries.
    """
    cause = first_cause(error)
    kind, message = type(cause).__name__, str(cause)
    if "\nOriginal Traceback" in message:  # torch's ExceptionWrapper
        ends = re.findall(r"^([\w.]+): (.*)", message, re.MULTILINE)
        kind, message = (ends[-1][0].rpartition(".")[2], ends[-1][1]) if ends else (kind, message)
    missing = re.search("No module named '([^']+)'", message) if kind == "OptionalImportError" else None
    hint = f"; pip install {missing[1]}" if missing else ""
    message = re.split(r"\s*(?:For details about installing|Original traceback)", message)[0]  # of MONAI's imports
    return hide_passwords(message if isinstance(cause, InputError) else f"{kind}: {one_line(message)}{hint}")


def one_line(text: str, most: int = 600) -> str:
    """``text`` in one line of ``most`` characters at the most, with an ellipsis where words were left out."""
    return shorten(text, most, placeholder=" …")


def hide_passwords(text: str) -> str:
    """``text`` with the password of each address in it, as in postgresql://user:password@host, as ***."""
    text = re.sub(r"(://[^:/@\s]*):(?!\d+(/|$|[\s\"']))[^@\s]*@", r"\1:***@", text)
    return re.sub(r"([?&](password|passwd|pwd)=)[^&\s\"']*", r"\1***", text, flags=re.IGNORECASE)


def print_cause(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An excepthook: what ``describe`` says, and for other errors where in the config; the exit status is 1."""
    if not isinstance(error, Exception):
        return sys.__excepthook__(kind, error, traceback)
    text, link, where = describe(error), error, ""
    while link is not None:
        found = re.findall("component '(?:<function )?([^' ]+)", str(link))
        where = "".join(f" in {name}" for name in found) or where
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    if not isinstance(first_cause(error), InputError):
        text = f"{text.replace(':', f'{where}:', 1)} (--debug true shows the traceback)"
    print(text, file=sys.stderr)
    return None
