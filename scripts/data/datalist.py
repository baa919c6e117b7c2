"""Write the datalist of a BIDS dataset or a table: its scans, their lesion volumes, and nested folds."""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.json_file import write_json
from scripts.data.bids import check_files, read_description, scans_in_bids, scans_in_csv
from scripts.data.folds import assign_folds, table_of_folds
from scripts.data.placement import MARGIN, STEP, head_in_mm
from scripts.data.reader import read_volume, refuse_name
from scripts.data.volume_files import stem
from scripts.data.volumes import lesion_of


def prepare_datalist(
    dataset_dir: str | None = None,
    *,
    csv: str | None = None,
    labels: str | None = None,
    keep_tse: bool = False,
    suffix: str = "T2w",
    contrasts: Sequence[str] = (),
    outer_folds: int = 3,
    inner_folds: int = 3,
    seed: int = 0,
    spacing: float | tuple[float, float, float] = 1.0,
    spatial_size: int | tuple[int, int, int] | str = 256,
    name: str | None = None,
    output: str | None = None,
) -> str:
    """Write a cohort's datalist.json: its scans, their lesion volumes, and nested folds that never split a subject.

    Args:
        dataset_dir: BIDS folder with lesion masks under derivatives/; with ``csv``, where relative paths start.
        csv: table to use instead of BIDS names, with columns ``image,label`` and maybe ``subject,session,acquisition``.
            A subject not given is the path's ``sub-``, else the file's name, or its whole path where names repeat.
        labels: the folder of masks to use, such as derivatives/lesion_masks; default: all that no software made.
        keep_tse: keep the scans whose ``acq-`` starts with tse.
        suffix: BIDS suffix of the images.
        contrasts: further BIDS suffixes, such as T1w,FLAIR: of images on the grid of the masks, named like ``suffix``'s
            but for it; of a table, the columns of such images. A scan may lack any.
        outer_folds: folds to test on, stratified by quartile of lesion volume and by acquisition.
        inner_folds: folds to validate on, of the subjects outside each outer fold.
        seed: seed of the folds.
        spacing: voxel size in mm of the grid that scans are resampled to: one number, or three in RAS order.
        spatial_size: size of that grid in voxels: one number, or three in RAS order, or "head": multiples of 16 that
            hold every head and 6 voxels around it. Air, which is most of a conformed scan, costs time and memory.
        name: the cohort's name; default: from dataset_description.json, else the folder's.
        output: file to write; default: datalist.json in ``dataset_dir``.

    Returns:
        Path of the file written. An ``InputError``, a line per problem, says what is not usable; nothing is written.
    """
    settings = _settings(spacing, spatial_size, seed=seed, outer_folds=outer_folds, inner_folds=inner_folds)
    root, target = _places(dataset_dir, csv, labels, output)
    about = _about(root, name)
    others = [contrasts] if isinstance(contrasts, str) else [*map(str, contrasts)]
    scans = _usable(root, _found(root, csv, str(suffix), labels, others), keep_tse, others)
    if settings["spatial_size"] == "head":
        settings["spatial_size"] = _around_heads(root, scans, settings["spacing"])
    assign_folds(scans, outer_folds, inner_folds, seed)
    write_json(target, about | settings | {"training": scans})
    _print_what_next(root, target, scans)
    return str(target)


def _print_what_next(root: Path, target: Path, scans: list[dict]) -> None:
    option = "" if target == root / "datalist.json" else f" --datalist {shlex.quote(str(target))}"
    command = "python -m monai.bundle run training --config_file configs/train.json"
    print(f"{table_of_folds(scans)}\n\nWritten: {target}")
    print(f"Next: {command} --dataset_dir {shlex.quote(str(root))}{option}")


def _settings(spacing: object, spatial_size: object, **numbers: object) -> dict:
    """The grid, three values each or "head", and ``numbers``; an ``InputError`` says which is out of its range."""
    grid = {"spacing": spacing, "spatial_size": spatial_size}
    for key, value in grid.items():
        if (key, value) == ("spatial_size", "head"):
            continue
        kinds, what = (int,), "whole number of voxels, three, or head"
        if key == "spacing":
            kinds, what = (int, float), "number of mm, or three"
        grid[key] = list(value) if isinstance(value, (list, tuple)) else [value] * 3
        if len(grid[key]) != 3 or not all(type(v) in kinds and 0 < v < inf for v in grid[key]):
            raise InputError(f"{key} {value}: expected a positive {what}")
        grid[key] = [kinds[-1](v) for v in grid[key]]
    for key, value in numbers.items():
        low = 0 if key == "seed" else 2
        if type(value) is not int or not low <= value < 2**32:
            raise InputError(f"{key} {value}: expected a whole number, at least {low}")
    return grid | numbers


def _places(dataset_dir: str | None, csv: str | None, labels: str | None, output: str | None) -> tuple[Path, Path]:
    """The dataset's folder and the file to write."""
    if csv is not None and labels is not None:
        raise InputError("give --csv, which names the masks, or --labels, not both")
    if dataset_dir is None and csv is None:
        raise InputError("give --dataset_dir, the folder of a BIDS dataset, or --csv, a table of images and labels")
    root = Path(os.path.abspath(str(dataset_dir) if dataset_dir is not None else Path(str(csv)).parent))
    if not root.is_dir():
        raise InputError(f"dataset_dir {root}: no such folder")
    target = Path(os.path.abspath(str(output))) if output is not None else root / "datalist.json"
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: cannot be written; give another file as --output")
    return root, target


def _about(root: Path, name: str | None) -> dict:
    told = read_description(root / "dataset_description.json")
    return {"name": str(name or told.get("Name") or root.name), "simulated": told.get("Simulated") is True}


def _found(root: Path, csv: str | None, suffix: str, labels: str | None, contrasts: Sequence[str]) -> list[dict]:
    if csv is None:
        return scans_in_bids(root, suffix, labels, contrasts)
    return scans_in_csv(Path(str(csv)), root, contrasts)


def _usable(root: Path, scans: list[dict], keep_tse: bool, contrasts: Sequence[str]) -> list[dict]:
    """The scans to use in the order of their images, each with a subject and its ``lesion_volume`` in mm3."""
    kept = [scan for scan in scans if keep_tse or not (scan["acquisition"] or "").startswith("tse")]
    if not kept:
        raise InputError(f"all {len(scans)} scans are acq-tse; --keep_tse keeps them")
    if len(kept) < len(scans):
        print(f"Left out: {len(scans) - len(kept)} acq-tse scans (--keep_tse keeps them)")
    names = Counter(stem(os.path.basename(scan["image"])) for scan in kept if scan["subject"] is None)
    for scan in kept:  # a/T2.nii.gz and b/T2.nii.gz are two people
        name = stem(os.path.basename(scan["image"]))
        scan["subject"] = scan["subject"] or (name if names[name] == 1 else stem(scan["image"]))
    check_files(root, kept)
    kept.sort(key=lambda scan: scan["image"])
    makers = Counter(scan.pop("software") for scan in kept)
    _of_each(lambda scan: _measure_lesion(root, scan), kept, "Reading masks")
    for scan in kept:
        if scan["lesion_volume"] == 0:
            print(f"Warning: {scan['label']}: its lesion volume is 0")
    for software in makers.keys() - {None}:
        print(f"Warning: {makers[software]} masks were made by {software}: predictions, taken as the truth")
    for contrast in contrasts:
        if not any(contrast in scan.get("contrasts", {}) for scan in kept):
            raise InputError(f"contrasts {contrast}: none of the {len(kept)} scans has one; is it the BIDS suffix?")
    return kept


def _of_each(function: Callable[[dict], Any], scans: list[dict], doing: str) -> list:
    """What ``function`` says of each scan; an ``InputError`` has the lines of all scans that it raised one for."""

    def found_or_wrong(scan: dict) -> Any:
        try:
            return function(scan)
        except InputError as error:
            return error

    with ThreadPoolExecutor(8) as pool:  # not one per core: each holds a whole volume
        found = list(tqdm(pool.map(found_or_wrong, scans), doing, len(scans), leave=False))
    if problems := [str(one) for one in found if isinstance(one, InputError)]:
        raise InputError("\n".join(problems))
    return found


def _measure_lesion(root: Path, scan: dict) -> None:
    """Set the scan's ``lesion_volume``, in mm3."""
    for image in (scan["image"], *scan.get("contrasts", {}).values()):
        refuse_name(root / image)
    mask = read_volume(root / scan["label"])
    n_voxels = np.count_nonzero(lesion_of(mask))
    scan["lesion_volume"] = round(float(n_voxels * abs(np.linalg.det(mask.affine[:3, :3]))), 1)


def _around_heads(root: Path, scans: list[dict], spacing: list[float]) -> list[int]:
    """The size in voxels, RAS, of the smallest grid that holds every scan's head and ``MARGIN`` voxels around it."""
    found = _of_each(lambda scan: head_in_mm(read_volume(root / scan["image"])), scans, "Finding heads")
    around = [np.minimum(np.ptp(extent, axis=1) / spacing + 2 * MARGIN, sides / spacing) for sides, extent in found]
    needed = np.array(around)
    size = [STEP * int(np.ceil(round(n, 3) / STEP)) for n in needed.max(0)]
    largest = ", ".join(dict.fromkeys(scans[i]["image"] for i in needed.argmax(0)))
    print(f"Grid: {'x'.join(map(str, size))} voxels, for the largest heads and {MARGIN} voxels around them: {largest}")
    return size
