"""Send what a part of a program says to a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append the log and the stderr of what runs within to ``path``, and to nothing else."""
    root = logging.getLogger()
    handlers = root.handlers
    with path.open("a") as file, redirect_stderr(file):
        root.handlers = [logging.StreamHandler(file)]
        try:
            yield
        finally:
            root.handlers = handlers
