"""An error about a JSON file names the file and the key; numbers are strict."""

from pathlib import Path

import pytest

from scripts.common.errors import InputError
from scripts.common.json_file import as_json, check_json, read_json, write_json


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{}", b"[" * 100_000])
def test_what_is_not_json_is_one_line_with_its_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "card.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/card.json: not JSON \(.*\); write it again$") as error:
        read_json(tmp_path / "card.json", "write it again")
    assert len(str(error.value).splitlines()) == 1


def test_what_cannot_be_read_is_one_line_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^{tmp_path}: cannot be read \(Is a directory\); write it again$"):
        read_json(tmp_path, "write it again")


def test_what_is_written_is_read_again_and_ends_with_a_line(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"a": [1, None]})
    assert (tmp_path / "new" / "a.json").read_text().endswith("}\n")
    assert read_json(tmp_path / "new" / "a.json", "") == {"a": [1, None]}


def test_a_value_is_what_a_file_gives_back() -> None:
    assert as_json({"a": (1, Path("x")), 2: None}) == {"a": [1, "x"], "2": None}


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json", "") == {"a": 1}


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        ("integer", 1, True),
        ("integer", 1.0, False),
        ("integer", True, False),
        ("number", 1, True),
        ("number", 0.5, True),
        ("number", True, False),
        ("number", float("inf"), False),
        ("number", float("nan"), False),
    ],
)
def test_numbers_are_as_strict_as_what_takes_them(kind: str, value: object, fits: bool) -> None:
    schema = {"properties": {"rows": {"items": {"properties": {"n": {"type": kind}}}}}}
    content = {"rows": [{"n": 1}, {"n": value}]}
    if fits:
        check_json("a.json", content, schema, "mend it")
    else:
        with pytest.raises(InputError, match=rf"^a.json: rows\[1\]#n {value!r} is not of type '{kind}'; mend it$"):
            check_json("a.json", content, schema, "mend it")


def test_each_problem_is_a_line() -> None:
    schema = {"required": ["a", "b"], "properties": {"c": {"minimum": 1}}}
    with pytest.raises(InputError) as error:
        check_json("a.json", {"c": 0}, schema, "mend it")
    assert sorted(str(error.value).splitlines()) == [
        "a.json: 'a' is a required property; mend it",
        "a.json: 'b' is a required property; mend it",
        "a.json: c 0 is less than the minimum of 1; mend it",
    ]
