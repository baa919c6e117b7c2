"""Replace files whole: a process that is killed leaves the old file or the new one, never half of one."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from scripts.common.errors import InputError

NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have none
FORGOTTEN = 24 * 3600  # s after which what a killed process has left is removed


def bundle_root() -> str:
    """Return the folder of the bundle that this code is part of."""
    return str(Path(__file__).resolve().parents[2])


@contextmanager
def replace_file(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """``replace_files`` of one file."""
    with replace_files([path], mode) as (file,):
        yield file


@contextmanager
def replace_files(paths: Iterable[str | Path], mode: str = "w", removed: Iterable[Path] = ()) -> Iterator[list[IO]]:
    """Open a new file for each of ``paths`` and, when the block ends, put them in their places, all of them or none.

    All are on the disk before ``removed`` are deleted and the first takes its name, in the order of ``paths``. If the
    block raises, everything stays as it was. Several processes may write the same paths at once; the last one wins.
    A kill leaves a hidden folder ``.<name>.<random>.tmp``, which a write of that file removes a day later.

    Args:
        paths: the files; their folders are made.
        mode: "w" or "wb".
        removed: files that go with the old ones; they need not exist.

    Raises:
        InputError: the disk is full, a folder cannot be written, or any other ``OSError``.
    """
    paths = [Path(path) for path in paths]
    placed = []
    try:
        with ExitStack() as stack:
            files = []
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove_forgotten(path)
                names = {"prefix": f".{path.name[:100]}.", "suffix": ".tmp", "ignore_cleanup_errors": True}
                folder = stack.enter_context(TemporaryDirectory(dir=path.parent, **names))
                files.append(stack.enter_context(open(f"{folder}/new", mode, newline=None if "b" in mode else "")))
            path = paths[0]
            yield files
            for i, file in enumerate(files):
                path = paths[i]
                file.flush()
                _fsync(file.fileno())
                file.close()
            for path in removed:
                placed += [path] * path.exists()
                path.unlink(missing_ok=True)
            for path, file in zip(paths, files, strict=True):
                Path(file.name).replace(path)
                placed.append(path)
            for folder in {path.parent for path in paths}:
                _flush_folder(folder)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        if not isinstance(cause, OSError) and "PytorchStreamWriter" not in str(cause):  # of torch.save, on a full disk
            raise
        reason = getattr(cause, "strerror", None) or " ".join(str(cause).split())
        names = ", ".join(dict.fromkeys(path.name for path in placed))
        kept = f"but {names} changed already, so write them again" if placed else "what was there before is kept"
        raise InputError(f"{path}: cannot be written ({reason}); {kept}") from error


def _remove_forgotten(path: Path) -> None:
    """Remove what processes have left that were killed while they wrote ``path``, unless it may be a living one's."""
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(f".{path.name[:100]}.") and name.endswith(".tmp"):
                left = path.with_name(name)
                if time.time() - max(p.stat().st_mtime for p in (left, *left.iterdir())) > FORGOTTEN:
                    shutil.rmtree(left)


def _fsync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise


def _flush_folder(folder: Path) -> None:
    """Make the new names survive a power loss, where the system can: network drives refuse, Windows does by itself."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file at ``path``, or "" if it cannot be read, which whoever reads it reports."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""
