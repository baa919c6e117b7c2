"""MONAI's inference takes a list of files: this finds the scans of a folder, a glob or a BIDS dataset."""

import glob
import os
from pathlib import Path

from scripts.common.errors import InputError


def find_scans(input: str | None) -> list[dict]:
    """The scans to segment, as ``{"image": path}``, not yet opened.

    Args:
        input: a NIfTI file, a glob, or a folder, in which every ``*_T2w`` file is taken, or, where there is none,
            every NIfTI file that is not a mask; a BIDS ``derivatives`` folder is left out.

    Raises:
        InputError: no input, nothing found, or two scans whose masks would have one name.
    """
    if not input:
        raise InputError("--input is missing: give a NIfTI file, a folder or a glob")
    path = Path(input)
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*.nii*")) if "derivatives" not in p.relative_to(path).parts]
        found = [p for p in found if "_T2w.nii" in p.name] or [
            p for p in found if "mask" not in p.name and "_desc-lesion_" not in p.name
        ]
    else:
        found = [path] if path.exists() or path.is_symlink() else [Path(p) for p in sorted(glob.glob(input))]
    if not found:
        raise InputError(f"--input {input}: no NIfTI file (*.nii, *.nii.gz) there")
    twins = [p for p in found if p.suffix == ".nii" and p.with_name(f"{p.name}.gz") in found]
    if twins:
        raise InputError("\n".join(f"{p}: {p.name}.gz beside it would give a mask of the same name" for p in twins))
    return [{"image": str(p.absolute())} for p in found]


def root_of(input: str | None) -> str:
    """The folder below which outputs have their scans' subfolders: the input, or what its scans have in common."""
    if not input or Path(input).is_dir():
        return input or "."
    return os.path.commonpath([os.path.dirname(scan["image"]) for scan in find_scans(input)])
