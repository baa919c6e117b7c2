"""Python and torch write in place, so a kill leaves half a file: here a file is replaced whole, or stays as it was."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from scripts.common.errors import InputError


@contextmanager
def replace_file(path: str | Path, mode: str = "w", unique: bool = False) -> Iterator[IO]:
    """Open a file beside ``path``, flush it to the disk and put it in the place of ``path`` when the block ends.

    If the block raises, ``path`` stays as it was and nothing is left beside it; a kill leaves ``.<name>.tmp``, which
    the next write takes over.

    Args:
        path: the file; its folder is made.
        mode: "w" or "wb".
        unique: several processes may write ``path`` at once; the last one wins.

    Raises:
        InputError: the disk is full, the folder cannot be written, or any other ``OSError``.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp" if unique else f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open(mode, newline=None if "b" in mode else "") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _flush_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = cause.strerror if isinstance(cause, OSError) else " ".join(str(cause).split())[:120]
        raise InputError(f"{path}: cannot be written ({reason}); what was there before is kept") from error


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power loss; Windows cannot open a folder and does this by itself."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Of the content of the file at ``path``; empty where it cannot be read, which whoever reads it reports."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""
