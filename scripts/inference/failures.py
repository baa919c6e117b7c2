"""Which scans were left out, and why: many processes note theirs at once, and none loses another's.

Each note is a file of its own in ``logs/left_out``, a row of ``failures.tsv``, which is made of all notes.
"""

from contextlib import suppress
from glob import glob
from pathlib import Path

from scripts.common.files import replace_file
from scripts.data.volume_files import stem
from scripts.inference.derivative import FAILURES

NOTES = Path("logs", "left_out")


def read_failures(folder: Path) -> dict[str, str]:
    """Why each scan of the derivative in ``folder`` was left out, by its path in the dataset."""
    rows = []
    for name in glob("**/*.tsv", root_dir=folder / NOTES, recursive=True):
        with suppress(FileNotFoundError):  # another process has segmented it meanwhile
            rows.append((folder / NOTES / name).read_text().rstrip("\n").split("\t"))
    return dict(sorted(rows))


def note_failures(folder: Path, outcomes: dict[str, str | None]) -> None:
    """Note the reason of each scan that was left out, or None: it was not; and write ``failures.tsv``.

    The table is written until no other process has noted anything meanwhile, so whoever is last has all. Without a
    note it is removed.

    Raises:
        InputError: the folder cannot be written.
    """
    for scan, reason in outcomes.items():
        path = folder / NOTES / f"{stem(scan)}.tsv"
        if reason is None:
            path.unlink(missing_ok=True)
        else:
            with replace_file(path) as file:
                file.write(f"{scan}\t{' '.join(reason.split())}\n")
    written = None
    while written != (notes := read_failures(folder)):
        if notes:
            with replace_file(folder / FAILURES) as file:
                file.writelines(f"{scan}\t{reason}\n" for scan, reason in [("scan", "reason"), *notes.items()])
        else:
            (folder / FAILURES).unlink(missing_ok=True)
        written = notes
