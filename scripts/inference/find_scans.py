"""MONAI's inference takes a list of files: this finds the scans of a folder, a glob or a BIDS dataset."""

import glob
import os
import re
from collections import Counter
from pathlib import Path

from scripts.common.errors import InputError
from scripts.inference.derivative import stem


def find_scans(input: str | None, shard: str | None = None) -> list[dict]:
    """The scans of a NIfTI file, a glob or a folder, as ``{"image": path}``, not yet opened.

    Of the ``shard`` "3/16" every 16th from the third on, which may be none: the 16 shards have each scan once.

    Of a folder, without BIDS ``derivatives``, every ``*_T2w`` file is taken, or, if no name is of BIDS, all that are no
    masks. InputError: nothing found, a BIDS dataset without T2w, two scans whose masks would have one name, no shard.
    """
    first, every = _shard(shard)
    if not input:
        raise InputError("--input is missing: give a NIfTI file, a folder or a glob")
    path = Path(input)
    if path.is_dir():
        there = [p for p in sorted(path.rglob("*.nii*")) if "derivatives" not in p.relative_to(path).parts]
        others = [p for p in there if not re.search(r"mask|_(probseg|dseg)\.nii|_desc-lesion_", p.name)]
        found = [p for p in there if "_T2w.nii" in p.name] or others
        suffixes = Counter(bids[1] for p in found if (bids := re.fullmatch(r"sub-.*_(\w+)\.nii(?:\.gz)?", p.name)))
        if suffixes.keys() - {"T2w"}:
            kinds = ", ".join(f"{suffix} ({n})" for suffix, n in suffixes.most_common())
            example = path / "**" / f"*_{next(iter(suffixes))}.nii*"
            raise InputError(
                f"--input {path}: a BIDS dataset without T2w scans, there are {kinds}; to segment others all the same, "
                f"give them as a file or a glob in quotes: --input '{example}'"
            )
    else:  # a dangling link is found, too, and reported when it is read
        found = [path] if os.path.lexists(path) else [Path(p) for p in sorted(glob.glob(input, recursive=True))]
    if not found:
        raise InputError(f"--input {input}: no NIfTI file (*.nii, *.nii.gz) there")
    named: dict[Path, Path] = {}
    twins = [(p, other) for p in found if (other := named.setdefault(p.with_name(stem(p)), p)) != p]
    if twins:
        raise InputError("\n".join(f"{p}: its mask would have the name of that of {other.name}" for p, other in twins))
    return [{"image": str(p.absolute())} for p in found[first - 1 :: every]]


def _shard(shard: str | None) -> tuple[int, int]:
    """3 and 16 of "3/16"."""
    parts = re.fullmatch(r"(\d+)/(\d+)", "1/1" if shard is None else str(shard))
    first, every = (int(part) for part in parts.groups()) if parts else (0, 0)
    if not 1 <= first <= every:
        raise InputError(f"--shard {shard}: expected one of several parts, such as 3/16, the first being 1/16")
    return first, every


def root_of(input: str | None) -> str:
    """The folder below which outputs have their scans' subfolders: the input, or what its scans have in common."""
    if not input or Path(input).is_dir():
        return input or "."
    return os.path.commonpath([os.path.dirname(scan["image"]) for scan in find_scans(input)])
