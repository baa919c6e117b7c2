"""MONAI's readers die on the first bad scan, often without its name: this reads them all and says all that is wrong."""

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.data.volumes import read_volume

logger = logging.getLogger("meshnet")
RULES = 1  # counted up when a rule changes, so that no report of older rules is used again
SPACING_ERROR, SPACING_WARNING = (0.01, 100), (0.2, 15)  # mm
Image = nib.spatialimages.SpatialImage


def check_scans(
    scans: list[dict], spacing: tuple | None = None, spatial_size: tuple | None = None, cache: Path | None = None
) -> list[dict]:
    """Read every ``image``, and ``label`` where a scan has one, in full; the rules are in docs/cohorts.md.

    Args:
        scans: dictionaries with an ``image`` path and, optionally, ``label`` and ``subject``.
        spacing: mm, and ``spatial_size``, voxels: the recipe's grid in RAS order, beyond which a lesion is cut off.
        spatial_size: see ``spacing``.
        cache: file in which reports are kept; one is used again while its files have the same size and time.

    Returns:
        A report per scan: ``errors`` and ``warnings`` (one line each, naming the file), ``empty_label``, and
        ``sha256`` of its files.
    """
    known = _read_cache(cache)
    grid = [RULES, spacing and list(spacing), spatial_size and list(spatial_size)]

    def report(scan: dict) -> dict:
        key = _state_of_files(scan, grid)
        return known[key] if key in known else {"key": key, **_check_scan(scan, spacing, spatial_size)}

    with ThreadPoolExecutor(8) as pool:  # not one per core: each holds a volume and its mask
        reports = list(tqdm(pool.map(report, scans), "Checking scans", len(scans), leave=False))
    if cache and any(r["key"] not in known for r in reports):
        try:
            with replace_file(cache, unique=True) as file:
                json.dump({r["key"]: r for r in [*known.values(), *reports]}, file, indent=1)
        except InputError as error:
            logger.info(f"The check of the scans is not kept: {error}")
    return _with_duplicates(scans, [{**r, "errors": [*r["errors"]], "warnings": [*r["warnings"]]} for r in reports])


def refuse_bad_scans(scans: list[dict], reports: list[dict], lesion_needed: Sequence[dict] = ()) -> None:
    """Log what is odd about the scans; raise if one cannot be used.

    Args:
        scans: what was checked.
        reports: what ``check_scans`` returned for them.
        lesion_needed: those whose mask must not be empty.

    Raises:
        InputError: a table with a line per error.
    """
    errors, warnings = problems_of(scans, reports, lesion_needed)
    for line in warnings:
        logger.warning(line)
    if errors:
        raise InputError("\n".join(errors))


def problems_of(
    scans: list[dict], reports: list[dict], lesion_needed: Sequence[dict] = ()
) -> tuple[list[str], list[str]]:
    """All errors and all warnings, a line each, in the scans' order."""
    errors, warnings = [], []
    for scan, report in zip(scans, reports, strict=True):
        errors += report["errors"]
        warnings += report["warnings"]
        if report["empty_label"] and scan in lesion_needed:
            errors.append(f"{scan['label']}: empty lesion mask in the training set; take this scan out of the datalist")
        elif report["empty_label"]:
            warnings.append(f"{scan['label']}: empty lesion mask")
    return errors, warnings


def _read_cache(cache: Path | None) -> dict:
    try:
        return json.loads(cache.read_text()) if cache else {}
    except (OSError, ValueError):  # none yet, or not ours: everything is read again
        return {}


def _state_of_files(scan: dict, grid: list) -> str:
    states = []
    for key in ("image", "label"):
        path = Path(scan[key]) if key in scan else None
        stat = path.stat() if path and path.is_file() else None
        states.append([path and str(path), stat and stat.st_size, stat and stat.st_mtime_ns])
    return json.dumps([states, grid])


def _check_scan(scan: dict, spacing: tuple | None, spatial_size: tuple | None) -> dict:
    report = {"errors": [], "warnings": [], "empty_label": False, "sha256": {}}
    volumes = {}
    for key in [key for key in ("image", "label") if key in scan]:
        try:
            volumes[key] = read_volume(scan[key])
            report["sha256"][key] = hashlib.sha256(Path(scan[key]).read_bytes()).hexdigest()
        except InputError as error:
            report["errors"].append(str(error))
    if "image" in volumes:
        _check_image(scan["image"], *volumes["image"], report)
    if len(volumes) == 2 and not report["errors"]:
        wrong = _off_grid(volumes["label"][0], volumes["image"][0])
        if wrong:
            report["errors"].append(f"{scan['label']}: {wrong}: {scan['image']}")
        else:
            _check_mask(scan["label"], *volumes["label"], spacing, spatial_size, report)
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


def _check_mask(
    path: str, label: Image, data: np.ndarray, spacing: tuple | None, spatial_size: tuple | None, report: dict
) -> None:
    lesion = data > 0
    fraction = lesion.mean()
    report["empty_label"] = not lesion.any()
    if fraction > 0.5:
        report["errors"].append(f"{path}: {fraction:.0%} of the volume is above 0; is this a lesion mask?")
    values = np.unique(data[lesion])
    if len(values) > 1:
        report["warnings"].append(f"{path}: {len(values)} different values above 0, all taken as lesion")
    if data.min() < 0:
        report["warnings"].append(f"{path}: values below 0, taken as background")
    if spacing is not None and lesion.any():
        axes = nib.io_orientation(label.affine)[:, 0].astype(int)  # RAS axis of each voxel axis
        half = np.array([spacing[axis] * spatial_size[axis] / 2 for axis in axes])
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
