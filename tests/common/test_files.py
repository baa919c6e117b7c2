"""A file is replaced whole or stays as it was, whatever happens while it is written."""

import os
from pathlib import Path

import pytest

from scripts.common.errors import InputError
from scripts.common.files import replace_file


def test_the_file_and_its_folder_are_made(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a" / "b.txt") as file:
        file.write("whole\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"whole\n"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_until_the_block_ends_the_old_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    with replace_file(tmp_path / "b.txt") as file:
        file.write("new")
        file.flush()
        assert (tmp_path / "b.txt").read_text() == "old"
    assert (tmp_path / "b.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_leaves_the_old_file_alone_and_nothing_beside_it(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "b.txt").write_text("old")

    def write() -> None:
        with replace_file(tmp_path / "b.txt") as file:
            file.write("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("b.txt", "old")]


def test_a_full_disk_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^/dev/shm/.*b.bin: cannot be written \(File too large\)"):
        _write_with_file_size_limit()


def _write_with_file_size_limit() -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with replace_file(f"/dev/shm/meshnet-{os.getpid()}/b.bin", "wb") as file:
            file.write(b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        Path(f"/dev/shm/meshnet-{os.getpid()}").rmdir()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with (
        pytest.raises(InputError, match=r"a/b.txt: cannot be written \((File exists|Not a directory)\)"),
        replace_file(tmp_path / "a" / "b.txt"),
    ):
        pass


def test_two_writers_of_a_shared_file_do_not_meet(tmp_path: Path) -> None:
    with replace_file(tmp_path / "b.txt") as first, replace_file(tmp_path / "b.txt", unique=True) as second:
        first.write("first")
        second.write("second")
    assert (tmp_path / "b.txt").read_text() == "first"  # its block ended last
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]
