"""Find the scans of a folder, a glob or a BIDS dataset."""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from scripts.common.errors import InputError, one_line
from scripts.data.bids import entities
from scripts.data.volume_files import ENDING, count, files_below, is_utf8, stem, why_no_scan
from scripts.inference.derivative import DESCRIPTION, name_of

logger = logging.getLogger("meshnet")


def find_scans(input: str | None, shard: str | None = None, select: Sequence[str] | None = None) -> list[dict]:
    """The scans of a NIfTI file, a glob or a folder, as ``{"image": path}``, not yet opened.

    With ``select``, such as ("sub-1", "sub-2", "acq-spc3"), only those whose path has these BIDS entities; of an entity
    that is given twice, either.
    Of the ``shard`` "3/16" every 16th from the third on, which may be none: the 16 shards have each scan once.

    Of a folder every ``*_T2w`` file is taken, or, if no name is of BIDS, every scan. A line counts what was not taken.
    InputError: nothing found, a BIDS dataset without T2w, two scans whose masks would have one name, no shard, a
    selection that no scan has.
    """
    first, every = _shard(shard)
    if not input:
        raise InputError("--input is missing: give a NIfTI file, a folder or a glob")
    path, start = _start(input)
    if not is_utf8(path):
        raise InputError(f"--input {input}: its path is not UTF-8; rename it")
    given = [path] if os.path.lexists(path) else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
    folders = [p for p in given if p.is_dir() and (p == path or not ENDING.search(p.name))]
    paths = [*({*given} - {*folders}), *(p for folder in folders for p in files_below(folder))]
    typed = path.relative_to(start).parts
    there = {p: why_no_scan(p, {*p.relative_to(start).parts[:-1]} - {*typed}) for p in paths}
    if given == [path] and not folders:  # a file of any name: reading it says what it is
        there = {path: None}
    found = sorted(p for p, why in there.items() if why is None)  # dangling links, too, which reading reports
    if folders:
        found = _t2w(path, found, there)
    if not_taken := count(there.values()):
        logger.info(f"Not taken of --input {path}: {not_taken}")
    if not found:
        if not (folders or re.search(r"[*?\[]", str(input))):
            raise InputError(f"--input {input}: no such file or folder")
        raise InputError(f"--input {input}: no NIfTI file (*.nii, *.nii.gz) there" + f"; {not_taken}" * bool(not_taken))
    found = _selected(found, root_of(input), [select] if isinstance(select, str) else select or [])
    named: dict[Path, Path] = {}
    twins = [(p, other) for p in found if (other := named.setdefault(p.with_name(name_of(p)), p)) != p]
    if twins:
        raise InputError("\n".join(f"{p}: its mask would have the name of that of {other.name}" for p, other in twins))
    return [{"image": str(p)} for p in found[first - 1 :: every]]


def is_t2w(path: Path) -> bool:
    """Whether a scan is T2-weighted by its name."""
    return re.search(r"_T2w$", stem(path.name), re.IGNORECASE) is not None


def _selected(scans: list[Path], root: str, select: Sequence[str]) -> list[Path]:
    """Of ``scans`` those that have the entities of ``select``."""
    has = {scan: entities(scan.relative_to(root).as_posix()) for scan in scans}
    wanted: dict[str, list[str]] = {}
    for entity in select:
        key, dash, value = str(entity).partition("-")
        there = {f"{key}-{found[key]}" for found in has.values() if key in found}
        if not dash or entity not in there:
            example = f"they have {', '.join(sorted(there))}" if there else "expected an entity of them, like acq-spc3"
            flag = "--session_label or --select" if key == "ses" else "--select"
            raise InputError(f"{flag} {entity}: none of the {len(scans)} scans has it; {one_line(example)}")
        wanted.setdefault(key, []).append(value)
    chosen = [scan for scan in scans if all(has[scan].get(key) in values for key, values in wanted.items())]
    if scans and not chosen:
        raise InputError(f"--select {' '.join(select)}: none of the {len(scans)} scans has all of it")
    return chosen


def _t2w(folder: Path, scans: list[Path], why_not: dict[Path, str | None]) -> list[Path]:
    """Of ``scans`` the T2w if there are some, the others being noted in ``why_not``; else all, unless they are BIDS."""
    found = [p for p in scans if is_t2w(p)]
    if found:
        why_not |= dict.fromkeys({*scans} - {*found}, "without _T2w at the end of the name")
        return found
    suffixes = Counter(bids[1] for p in scans if (bids := re.fullmatch(r"sub-.*_([^\W_]+)", stem(p.name))))
    if suffixes.keys() - {"T2"}:  # which people write for T2w
        kinds = ", ".join(f"{suffix} ({n})" for suffix, n in suffixes.most_common())
        example = folder / "**" / f"*_{next(iter(suffixes))}.nii*"
        raise InputError(
            f"--input {folder}: a BIDS dataset without T2w scans, there are {kinds}; to segment others all the same, "
            f"give them as a file or a glob in quotes: --input '{example}'"
        )
    return scans


def _shard(shard: str | None) -> tuple[int, int]:
    """3 and 16 of "3/16"."""
    parts = re.fullmatch(r"(\d+)/(\d+)", "1/1" if shard is None else str(shard))
    first, every = (int(part) for part in parts.groups()) if parts else (0, 0)
    if not 1 <= first <= every:
        raise InputError(f"--shard {shard}: expected one of several parts, such as 3/16, the first being 1/16")
    return first, every


def root_of(input: str | None) -> str:
    """The folder below which outputs have their scans' subfolders, whichever part of a dataset is given.

    It is the nearest above, or the input itself, that is a BIDS dataset, by its description or by a ``sub-`` below it.
    Else it is the folder that was given, or that of the file, or what a glob begins with.
    """
    _, start = _start(input or "")
    folders = (start, *start.parents)
    described = (folder for folder in folders if os.path.isfile(folder / DESCRIPTION))
    named = (folder.parent for folder in folders[:3] if re.match("sub-.", folder.name))  # of sub-1/ses-1/anat
    return str(next(described, None) or next(named, start))


def _start(input: str) -> tuple[Path, Path]:
    """The absolute path, and the folder that it is, or that its file is in, or that it begins with before a pattern."""
    path = Path(os.path.abspath(input))
    if os.path.lexists(path):
        return path, path if path.is_dir() else path.parent
    return path, Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
