"""What readers decided is taken as the page saves it, and what is no decision is a line."""

from hashlib import sha256
from pathlib import Path

import pytest

from scripts.common.errors import InputError
from scripts.data.decisions import DECISIONS, read_decisions, rejected


def decide(folder: Path, text: str) -> Path:
    path = folder / "group" / "decisions.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")
    return path


def test_decisions_are_read_as_a_page_or_a_spreadsheet_saves_them(tmp_path: Path) -> None:
    assert read_decisions(tmp_path) == {}
    rows = [
        "mask\tdecision\tnote",
        "a.nii.gz\treject\tmotion",
        'b/c.nii.gz\t\t"two ""words"""',
        "./d.nii.gz\taccept\tn/a",
    ]
    decide(tmp_path, "\ufeff" + "\r\n".join([*rows, "a.nii.gz\tcorrect\t"]))
    assert read_decisions(tmp_path) == {
        "a.nii.gz": ("correct", None),
        "b/c.nii.gz": (None, 'two "words"'),
        "d.nii.gz": ("accept", None),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mask\tdecision\tnote\na\taccept\t\nb\trejected\t\n", "row 3: decision 'rejected': expected one of accept, "),
        ("mask\tnote\na\t\n", "no column decision; it has: mask, note"),
        ("", "cannot be read (No columns to parse from file)"),
    ],
)
def test_what_is_no_decision_is_a_line(tmp_path: Path, text: str, problem: str) -> None:
    path = decide(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_decisions(tmp_path)
    assert str(error.value).startswith(f"{path}: {problem}")


def test_a_mask_is_rejected_by_the_derivative_that_it_lies_in(tmp_path: Path) -> None:
    masks = [tmp_path / folder / "sub-1" / "m.nii.gz" for folder in ("one", "two")]
    decide(tmp_path / "one", "mask\tdecision\tnote\nsub-1/m.nii.gz\treject\t\n")
    decide(tmp_path / "two", "mask\tdecision\tnote\nsub-1/m.nii.gz\tcorrect\t\n")
    assert rejected(masks) == {masks[0]}


def test_a_decision_is_on_the_mask_that_was_judged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "group").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").write_bytes(name.encode())
    told = [f"{name}.nii.gz\treject\tmotion\t{sha256(b'a').hexdigest()}\n" for name in "ab"]
    (tmp_path / DECISIONS).write_text("mask\tdecision\tnote\tmask_sha256\n" + "".join(told))
    assert read_decisions(tmp_path) == {"a.nii.gz": ("reject", "motion"), "b.nii.gz": (None, "motion")}
    assert "b.nii.gz: is another mask than the one that was judged; decide again" in caplog.text
