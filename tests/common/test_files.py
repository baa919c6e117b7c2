"""A file is replaced whole or stays as it was, whatever happens while it is written."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from scripts.common.errors import InputError
from scripts.common.files import replace_file, replace_files


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
    with replace_file(tmp_path / "b.txt") as first, replace_file(tmp_path / "b.txt") as second:
        first.write("first")
        second.write("second")
    assert (tmp_path / "b.txt").read_text() == "first"  # its block ended last
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def write_two(folder: Path) -> None:
    with replace_files([folder / "a", folder / "b"], removed=[folder / "c"]) as files:
        for file in files:
            file.write("new")


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / name).write_text("old")
    return tmp_path


def test_several_files_are_replaced_together_and_others_go_with_the_old(three: Path) -> None:
    write_two(three)
    assert contents(three) == {"a": "new", "b": "new"}


def fail_for(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, code: int, fails: Callable) -> None:
    original = getattr(owner, name)

    def call(first: object, *args: object) -> object:
        if fails(first):
            raise OSError(code, os.strerror(code))
        return original(first, *args)

    monkeypatch.setattr(owner, name, call)


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize(
    ("owner", "name", "said", "left"),
    [
        (os, "fsync", "what was there before is kept", {"a": "old", "b": "old", "c": "old"}),
        (Path, "replace", "but c, a changed already, so write them again", {"a": "new", "b": "old"}),
    ],
)
def test_what_fails_before_the_first_has_its_name_changes_none_and_later_what_has_changed_is_said(
    three: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, said: str, left: dict
) -> None:
    calls = []
    fail_for(monkeypatch, owner, name, errno.EIO, lambda _: calls.append(1) or len(calls) == 2)
    with pytest.raises(InputError, match=rf"/b: cannot be written \(Input/output error\); {said}$"):
        write_two(three)
    assert contents(three) == left


@pytest.mark.parametrize(
    ("code", "fails"), [(errno.EINVAL, is_folder), (errno.EIO, is_folder), (errno.EINVAL, lambda _: True)]
)
def test_where_nothing_or_no_folder_can_be_flushed_is_written_all_the_same(
    three: Path, monkeypatch: pytest.MonkeyPatch, code: int, fails: Callable
) -> None:
    """As on VirtualBox's shares, CIFS before Linux 4.17 and the first WSL."""
    fail_for(monkeypatch, os, "fsync", code, fails)
    write_two(three)
    assert contents(three) == {"a": "new", "b": "new"}


def test_the_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replace_file(tmp_path / "b.txt"):
        pass
    assert (tmp_path / "b.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_write_has_left_is_hidden_and_goes_a_day_later(tmp_path: Path) -> None:
    script = "import os, sys\nfrom scripts.common.files import replace_file\n"
    script += "with replace_file(sys.argv[1]) as file:\n    file.write('half')\n    file.flush()\n    os._exit(9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "b.nii.gz")], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".b.nii.gz.")
    assert [p.name for p in left.iterdir()] == ["new"]
    for age, stays in ((23, True), (25, False)):
        for path in (left, left / "new"):
            os.utime(path, (0, time.time() - age * 3600))
        with replace_file(tmp_path / "b.nii.gz"):
            pass
        assert left.exists() == stays
