"""MONAI's readers die on the first bad scan, often without its name: this reads them all and says all that is wrong."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.volumes import Image, read_volume

logger = logging.getLogger("meshnet")
RULES = 2  # counted up when a rule changes, so that no report of older rules is used again
SPACING_ERROR, SPACING_WARNING = (0.01, 100), (0.2, 15)  # mm


def check_scans(
    scans: list[dict], spacing: tuple | None = None, spatial_size: tuple | None = None, cache: Path | None = None
) -> list[dict]:
    """Read every ``image``, and ``label`` where a scan has one, in full; the rules are in docs/cohorts.md.

    Args:
        scans: dictionaries with an ``image`` path and, optionally, ``label`` and ``subject``.
        spacing: voxel size of the recipe's grid in mm, RAS order.
        spatial_size: its size in voxels, beyond which a lesion is cut off.
        cache: file in which reports without errors are kept, and used while their files have the same size and time.

    Returns:
        A report per scan: ``errors`` and ``warnings`` (one line each, naming the file), ``empty_label``, and
        ``sha256`` of its files.
    """
    grid = None if spacing is None else [list(spacing), list(spatial_size)]
    known = _known_reports(cache)

    def report(scan: dict) -> dict:
        key = json.dumps([RULES, grid, *(_state(scan.get(name)) for name in ("image", "label"))])
        return deepcopy(known.get(key)) or {"key": key, **_check_scan(scan, grid)}

    with ThreadPoolExecutor(8) as pool:  # not one per core: each holds a volume and its mask
        reports = list(tqdm(pool.map(report, scans), "Checking scans", len(scans), leave=False))
    new = {r["key"]: r for r in reports if r["key"] not in known and not r["errors"]}
    if cache and new:
        try:
            with replace_file(cache, unique=True) as file:
                json.dump(known | new, file, indent=1)
        except InputError as error:
            logger.info(f"The check of the scans is not kept: {error}")
    return _with_duplicates(scans, reports)


def refuse_bad_scans(scans: list[dict], reports: list[dict], lesion_needed: Sequence[dict] = ()) -> None:
    """Log the warnings of ``check_scans``; raise an ``InputError``, a line for each, if there are errors."""
    errors, warnings = problems_of(scans, reports, lesion_needed)
    for line in warnings:
        logger.warning(line)
    if errors:
        raise InputError("\n".join(errors))


def problems_of(
    scans: list[dict], reports: list[dict], lesion_needed: Sequence[dict] = ()
) -> tuple[list[str], list[str]]:
    """All errors and all warnings, a line each, in the scans' order; masks of ``lesion_needed`` must not be empty."""
    errors, warnings = [], []
    for scan, report in zip(scans, reports, strict=True):
        errors += report["errors"]
        warnings += report["warnings"]
        if report["empty_label"] and scan in lesion_needed:
            errors.append(f"{scan['label']}: empty lesion mask in the training set; take this scan out of the datalist")
        elif report["empty_label"]:
            warnings.append(f"{scan['label']}: empty lesion mask")
    return errors, warnings


def _known_reports(cache: Path | None) -> dict:
    try:
        known = json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):  # none yet, or not ours: everything is read again
        known = {}
    return known if isinstance(known, dict) else {}


def _state(path: str | None) -> list:
    stat = os.stat(path) if path and os.path.isfile(path) else None
    return [path, stat and stat.st_size, stat and stat.st_mtime_ns]


def _check_scan(scan: dict, grid: list | None) -> dict:
    report = {"errors": [], "warnings": [], "empty_label": False, "sha256": {}}
    volumes = {}
    try:
        for key in [key for key in ("image", "label") if key in scan]:
            try:
                volumes[key] = read_volume(scan[key])
                report["sha256"][key] = hashlib.sha256(Path(scan[key]).read_bytes()).hexdigest()
            except InputError as error:
                report["errors"].append(str(error))
        if "image" in volumes:
            _check_image(scan["image"], *volumes["image"], report)
        if len(volumes) == 2 and not report["errors"]:
            _check_mask(scan, volumes["image"][0], *volumes["label"], grid, report)
    except MemoryError:
        report["errors"].append(f"{scan['image']}: does not fit into the memory that is free")
    return report


def _check_image(path: str, image: Image, data: np.ndarray, report: dict) -> None:
    if data.min() == data.max():
        report["errors"].append(f"{path}: every voxel is {data.flat[0]:g}; is this the right file?")
    zooms = nib.affines.voxel_sizes(image.affine)
    shown = "x".join(f"{zoom:.3g}" for zoom in zooms)
    singular = not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 0.1 * np.prod(zooms)
    if singular or min(zooms) < SPACING_ERROR[0] or max(zooms) > SPACING_ERROR[1]:
        report["errors"].append(f"{path}: its affine is not one of a scan (spacing {shown} mm); repair the header")
    elif min(zooms) < SPACING_WARNING[0] or max(zooms) > SPACING_WARNING[1]:
        report["warnings"].append(f"{path}: unusual spacing, {shown} mm")
    header = image.header
    if isinstance(header, nib.Nifti1Header) and header["sform_code"] == header["qform_code"] == 0:
        report["warnings"].append(f"{path}: its header does not say where left and right are (both form codes are 0)")


def _off_grid(label: Image, image: Image) -> str | None:
    """How the mask's grid differs from its image's, or None."""
    if label.shape != image.shape:
        return f"shape {label.shape}, but its image has {image.shape}"
    ours, theirs = (nib.affines.voxel_sizes(volume.affine) for volume in (label, image))
    if not np.allclose(ours, theirs, rtol=0.01):
        return f"spacing {ours.round(3).tolist()} mm, but its image has {theirs.round(3).tolist()}"
    ours, theirs = ("".join(map(str, nib.aff2axcodes(volume.affine))) for volume in (label, image))
    if ours != theirs:
        return f"orientation {ours}, but its image has {theirs}"
    corners = np.array([(*corner, 1) for corner in product(*((0, n - 1) for n in image.shape))]).T
    shift = np.abs((label.affine - image.affine) @ corners).max()
    too_far = shift > 0.1 * nib.affines.voxel_sizes(image.affine).min()
    return f"its affine moves it {shift:.1f} mm away from its image" if too_far else None


def _check_mask(scan: dict, image: Image, label: Image, data: np.ndarray, grid: list | None, report: dict) -> None:
    path, lesion = scan["label"], data > 0
    if wrong := _off_grid(label, image):
        report["errors"].append(f"{path}: {wrong}: {scan['image']}")
        return
    report["empty_label"] = not lesion.any()
    if lesion.mean() > 0.5:
        report["errors"].append(f"{path}: {lesion.mean():.0%} of the volume is above 0; is this a lesion mask?")
    n_values = len(np.unique(data[lesion]))
    if n_values > 1:
        report["warnings"].append(f"{path}: {n_values} different values above 0, all taken as lesion")
    if data.min() < 0:
        report["warnings"].append(f"{path}: values below 0, taken as background")
    if grid and lesion.any():
        axes = nib.io_orientation(label.affine)[:, 0].astype(int)  # RAS axis of each voxel axis
        half = (np.array(grid[0]) * grid[1] / 2)[axes]
        centre = (np.array(label.shape) - 1) / 2
        away = np.abs(np.argwhere(lesion) - centre) * nib.affines.voxel_sizes(label.affine)
        outside = (away > half).any(axis=1).mean()
        if outside > 0:
            kind = "errors" if outside == 1 else "warnings"
            report[kind].append(f"{path}: {outside:.0%} of the lesion lies outside the recipe's grid")


def _with_duplicates(scans: list[dict], reports: list[dict]) -> list[dict]:
    """Add a line for files of the same content: an error in a cohort, which could test on what it has trained on."""
    for key in ("image", "label"):
        first: dict[str, str] = {}
        for scan, report in zip(scans, reports, strict=True):
            digest = report["sha256"].get(key)
            other = first.setdefault(digest, scan[key]) if digest and not report["empty_label"] else None
            if other and other != scan[key]:
                kind = "errors" if key == "image" and "label" in scan else "warnings"
                report[kind].append(f"{scan[key]}: the same content as {other}")
    return reports
