"""Tell which files of a folder are volumes, and which of the volumes are scans."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
OTHER_FORMAT = re.compile(r"\.(img|mgh|mgz|mha|nrrd)$", re.IGNORECASE)
BY_SYSTEMS = re.compile(  # hidden files; thumbnails, trash and snapshots of Synology, QNAP, Windows and macOS
    r"\.|@eaDir|@Rec|#recycle|#snapshot|\$RECYCLE\.BIN|System Volume|lost\+found|__MACOSX", re.IGNORECASE
)
NO_SCANS = re.compile(r"(derivatives|sourcedata|labels(T[rs]|Val)?)$")  # of BIDS and of nnU-Net
MADE = ("mask", "dseg", "probseg")  # BIDS suffixes of what was made from a scan
UNTOLD = (".git", ".datalad", ".heudiconv")


def stem(name: str) -> str:
    """``name`` without .nii or .nii.gz."""
    return ENDING.sub("", name)


def is_utf8(path: Path) -> bool:
    """Whether ``path`` can stand in a table or a log."""
    return not re.search("[\ud800-\udfff]", str(path))


def files_below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files in ``folder`` and below it, links followed, and the folders that were not looked into, in no order."""
    above = (*above, os.path.realpath(folder))
    try:
        entries = list(os.scandir(folder))
    except OSError:
        yield folder
        return
    for entry in entries:
        path = folder / entry.name
        if not entry.is_dir() or BY_SYSTEMS.match(entry.name) or ENDING.search(entry.name):
            yield path
        elif os.path.realpath(path) not in above:  # where a link leads back to
            yield from files_below(path, above)


def why_no_volume(path: Path) -> str | None:
    """Why what ``files_below`` gave is no volume, in words for a count; "" if nobody would think so; None if it is.

    A dangling link is a volume: whoever reads it says where it leads.
    """
    name = path.name
    if path.is_dir():
        told = BY_SYSTEMS.match(name) or ENDING.search(name)
        return "" if name in UNTOLD else f"folder {name}" if told else "folder that cannot be read"
    if other := OTHER_FORMAT.search(name):
        return f"*{other[0].lower()} (another format, convert to .nii.gz)"
    if not ENDING.search(name):
        return "*.nii* with another ending" if ".nii" in name.lower() else ""
    if BY_SYSTEMS.match(name):
        return "hidden"
    if not (path.is_file() or path.is_symlink()):
        return "no regular file"
    return None if is_utf8(path) else "whose path is not UTF-8 (rename it)"


def why_no_scan(path: Path, folders: Iterable[str] = ()) -> str | None:
    """The same for a scan; ``folders`` are those on the way to ``path`` that were not asked for by their names."""
    why = why_no_volume(path)
    special = (name for name in folders if NO_SCANS.match(name) or BY_SYSTEMS.match(name))
    if why is None and (name := next(special, None)):
        return f"in {name}"
    if why is None and (suffix := stem(path.name).split("_")[-1].lower()) in MADE:
        return f"*_{suffix}"
    return why


def volumes_below(folder: Path, named: str = "") -> list[Path]:
    """The volumes in ``folder`` and below it in whose names ``named`` is found; a line counts what was not taken."""
    there = {path: why_no_volume(path) for path in files_below(folder) if re.search(named, path.name)}
    if not_taken := count(there.values()):
        print(f"Not taken of {folder}: {not_taken}".encode(errors="replace").decode())
    return sorted(path for path, why in there.items() if why is None)


def count(reasons: Iterable[str]) -> str:
    """For example "3 in derivatives, 1 hidden"; "" of nothing."""
    return ", ".join(f"{n} {reason}" for reason, n in Counter(filter(None, reasons)).most_common())
