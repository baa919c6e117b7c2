"""What a part of a program says goes to its file, and only there."""

import logging
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from scripts.common.log_file import logged_to


def test_log_and_stderr_go_to_the_end_of_the_file_until_the_part_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log.txt"
    path.write_text("before\n")
    with suppress(ValueError), logged_to(path):
        logging.getLogger("meshnet").warning("a line")
        print("another", file=sys.stderr)
        raise ValueError("wrong")
    print("after", file=sys.stderr)
    logging.getLogger("meshnet").warning("later")
    assert path.read_text() == "before\na line\nanother\n"
    assert capsys.readouterr().err == "after\n"
    assert caplog.messages == ["later"]
