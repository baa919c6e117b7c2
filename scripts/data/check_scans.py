"""Read all scans and say all that is wrong with them, each by its name."""

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.placement import share_outside
from scripts.data.reader import read_volume
from scripts.data.volumes import Volume, is_like_a_mask, lesion_of, off_grid

logger = logging.getLogger("meshnet")
RULES = 4  # counted up when a rule changes, so that no report of older rules is used again


def check_scans(
    scans: list[dict], spacing: tuple | None = None, spatial_size: tuple | None = None, cache: Path | None = None
) -> list[dict]:
    """Read every ``image``, and ``label`` where a scan has one, in full; the rules are in docs/data.md.

    Args:
        scans: dictionaries with an ``image`` path and, optionally, ``label``.
        spacing: voxel size of the recipe's grid in mm, RAS order.
        spatial_size: its size in voxels, beyond which a lesion is cut off.
        cache: file in which reports without errors are kept, and used while their files have the same size and time.

    Returns:
        A report per scan: lines of ``errors`` and ``warnings``, ``empty_label``, ``is_like_a_mask`` (of the image), and
        ``sha256`` of its files.
    """
    grid, known = spacing and [list(spacing), list(spatial_size)], {}
    if cache:
        with suppress(OSError, ValueError):  # none yet, or not whole: everything is read again
            known = dict(json.loads(cache.read_text()))

    def report(scan: dict) -> dict:
        files = [scan[key] for key in ("image", "label") if key in scan]
        stats = [os.stat(file) for file in files if os.path.isfile(file)]
        key = json.dumps([RULES, grid, files, [(stat.st_size, stat.st_mtime_ns) for stat in stats]])
        return known.get(key) or {"key": key, **check_scan(scan, grid)}

    with ThreadPoolExecutor(8) as pool:  # not one per core: each holds a volume and its mask
        reports = list(tqdm(pool.map(report, scans), "Checking scans", len(scans), leave=False))
    new = {r["key"]: r for r in reports if r["key"] not in known and not r["errors"]}
    if cache and new:
        with suppress(InputError), replace_file(cache) as file:  # a read-only dataset is read each time
            json.dump(known | new, file, indent=1)
    _add_duplicates(scans, reports)
    return reports


def refuse_bad_scans(scans: list[dict], reports: list[dict], lesion_needed: Sequence[dict] = ()) -> None:
    """Log the warnings of ``check_scans``; raise an ``InputError``, a line for each, if there are errors."""
    errors, warnings = problems_of(scans, reports, lesion_needed)
    for line in warnings:
        logger.warning(line)
    if errors:
        raise InputError("\n".join(errors))


def problems_of(scans: list[dict], reports: list[dict], lesion_needed: Sequence = ()) -> tuple[list[str], list[str]]:
    """All errors and all warnings, a line each, in the scans' order; masks of ``lesion_needed`` must not be empty."""
    errors, warnings = [], []
    for scan, report in zip(scans, reports, strict=True):
        errors += report["errors"]
        warnings += report["warnings"]
        if report["empty_label"] and scan in lesion_needed:
            errors.append(f"{scan['label']}: empty lesion mask in the training set; take this scan out of the datalist")
        elif report["empty_label"]:
            warnings.append(f"{scan['label']}: empty lesion mask")
    return [*dict.fromkeys(errors)], [*dict.fromkeys(warnings)]  # several contrasts have one mask


def check_scan(scan: dict, grid: list | None = None) -> dict:
    """The report of one scan, see ``check_scans``; ``grid`` is the recipe's spacing and size."""
    report = {"errors": [], "warnings": [], "empty_label": False, "is_like_a_mask": False, "sha256": {}}
    for key in [key for key in ("image", "label") if key in scan]:
        try:
            volume = read_volume(scan[key])
            report["sha256"][key] = volume.sha256
            if key == "image":
                image = volume
                _check_image(image, report)
                report["is_like_a_mask"] = not report["errors"] and is_like_a_mask(image.data)
            elif not report["errors"]:
                _check_mask(image, volume, grid, report)
        except InputError as error:
            report["errors"].append(str(error))
        except MemoryError:
            report["errors"].append(f"{scan['image']}: does not fit into the memory that is free")
    return report


def _check_image(image: Volume, report: dict) -> None:
    path, data = image.path, image.data
    if data.min() == data.max():
        report["errors"].append(f"{path}: every voxel is {data.flat[0]:g}; is this the right file?")
    if data.min() < 0:
        low, high = np.percentile(data, (2, 98))
        if low < -0.1 * (high - low):
            report["warnings"].append(
                f"{path}: values are standardized, or no MRI's (a fiftieth is below {low:.3g}): air must be the "
                "darkest, so give the scan as the scanner stored it"
            )
    report["warnings"] += image.warnings


def _check_mask(image: Volume, label: Volume, grid: list | None, report: dict) -> None:
    path = label.path
    if wrong := off_grid(label, image):
        report["errors"].append(f"{path}: {wrong}: {image.path}")
        return
    if not label.n_nan and (share := (label.data > 0).mean()) > 0.5:
        report["errors"].append(f"{path}: {share:.0%} of the volume is above 0; is this a lesion mask?")
        return
    lesion = lesion_of(label)
    report["empty_label"] = not lesion.any()
    if (n_values := len(np.unique(label.data[lesion]))) > 1:
        report["warnings"].append(f"{path}: {n_values} different values above 0, all taken as lesion")
    if label.data.min() < 0:
        report["warnings"].append(f"{path}: values below 0, taken as background")
    if grid and lesion.any() and (outside := share_outside(image, lesion, *grid)):
        kind = "errors" if outside == 1 else "warnings"
        report[kind].append(f"{path}: {outside:.0%} of the lesion lies outside the recipe's grid")


def _add_duplicates(scans: list[dict], reports: list[dict]) -> None:
    """Add a line for files of the same content: an error in a cohort, which could test on what it has trained on.

    So is an image that is a mask, be it one of the cohort's or by its values.
    """
    cohort = [(scan, report) for scan, report in zip(scans, reports, strict=True) if "label" in scan]
    masks = {r["sha256"]["label"]: s["label"] for s, r in cohort if "label" in r["sha256"] and not r["empty_label"]}
    for scan, report in cohort:
        if mask := masks.get(report["sha256"].get("image")):
            report["errors"].append(f"{scan['image']}: given as an image, but its content is that of the mask {mask}")
        elif report["is_like_a_mask"]:
            report["errors"].append(f"{scan['image']}: given as an image, but has two or three values, as a mask")
    first: dict[tuple, str] = {}
    for key, (scan, report) in product(("image", "label"), zip(scans, reports, strict=True)):
        digest = report["sha256"].get(key)
        other = first.setdefault((key, digest), scan[key]) if digest and not report["empty_label"] else None
        if other and other != scan[key]:
            kind = "errors" if key == "image" and "label" in scan else "warnings"
            report[kind].append(f"{scan[key]}: the same content as {other}")
