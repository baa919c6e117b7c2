"""Split a cohort by its datalist, and check the scans of the split."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean

from scripts.common.errors import InputError
from scripts.data.check_scans import check_scans, refuse_bad_scans
from scripts.data.datalist_schema import read_datalist

logger = logging.getLogger("meshnet")


@dataclass(frozen=True)
class Cohort:
    """One outer (and inner) split of a cohort; a scan is a datalist entry with absolute ``image`` and ``label`` paths.

    Where contrasts were asked for, a scan is there once for each that it has, with its name as ``contrast``. A scan
    that was checked has ``sha256`` of both files. ``spacing`` (mm) and ``spatial_size`` (voxels) are in RAS.
    ``fingerprint`` is a hash of grid, split and the content of what was checked: the same for a copy in another folder.
    """

    name: str
    simulated: bool
    spacing: tuple[float, float, float]
    spatial_size: tuple[int, int, int]
    training: list[dict]
    validation: list[dict]
    test: list[dict]
    fingerprint: str

    @property
    def seen(self) -> list[str]:
        """First 16 hex digits of the SHA-256 of each training and validation image that was checked."""
        return sorted(s["sha256"]["image"][:16] for s in self.training + self.validation if "sha256" in s)

    def balanced_weights(self, spacing: Sequence[float], spatial_size: Sequence[int]) -> list[float]:
        """Weights of background and lesion by inverse frequency, 1 / (2 f), as scikit-learn's "balanced".

        f is a class's share of the training scans' voxels: of the lesion, its mean volume by the datalist over that of
        the grid (``spacing`` in mm).
        """
        lesion = fmean(scan["lesion_volume"] for scan in self.training) / (prod(spacing) * prod(spatial_size))
        if not lesion:
            raise InputError("class_weights balanced: no training scan has a lesion; give --class_weights fixed")
        weights = [0.5 / (1 - lesion), 0.5 / lesion]
        logger.info("class_weights balanced: background {:.4g}, lesion {:.4g}".format(*weights))
        return weights


def load_cohort(
    dataset_dir: str,
    datalist: str,
    fold: int,
    inner_fold: int | str | None,
    check: tuple = ("training", "validation"),
    contrasts: Sequence[str] = (),
) -> Cohort:
    """Read ``datalist`` (schema: docs/data.md) and split it.

    Args:
        dataset_dir: the folder that the datalist's paths start from.
        datalist: path of a ``datalist.json`` as ``scripts/prepare_datalist.py`` writes it.
        fold: outer fold held out as the test set.
        inner_fold: inner fold held out for validation; None (on a command line ``none``): train on all but ``fold``.
        check: subsets that must hold a scan and whose files are read in full before anything else happens.
        contrasts: to use of the scans that have several; the others are used as they are. Not given: ``image`` only.

    Raises:
        InputError: the datalist, a fold or a file is not usable; the message has one line per problem.
    """
    root = Path(dataset_dir).resolve()
    if not root.is_dir():
        raise InputError(f"dataset_dir {dataset_dir}: no such folder")
    content = read_datalist(Path(datalist), root)
    inner_fold = None if str(inner_fold).lower() in ("none", "null") else inner_fold
    for key, value in {"fold": fold, "inner_fold": inner_fold}.items():
        last = content["outer_folds" if key == "fold" else "inner_folds"] - 1
        if (key == "fold" or value is not None) and (type(value) is not int or not 0 <= value <= last):
            raise InputError(f"{key} {value}: this cohort has {key}s 0 to {last}")
    subsets: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    for scan in _of_contrasts(content["training"], contrasts, datalist):
        validates = inner_fold is not None and scan["inner_folds"][fold] == inner_fold
        subsets["test" if scan["fold"] == fold else "validation" if validates else "training"].append(scan)
    for name in check:
        if not subsets[name] and (name != "validation" or inner_fold is not None):
            raise InputError(f"{datalist}: no {name} scan for fold {fold}, inner_fold {inner_fold}; choose other folds")
    grid = tuple(content["spacing"]), tuple(content["spatial_size"])
    checked = [scan for name in check for scan in subsets[name]]
    reports = check_scans(checked, *grid, cache=Path(datalist).with_suffix(".checked.json"))
    refuse_bad_scans(checked, reports, lesion_needed=subsets["training"])
    for scan, report in zip(checked, reports, strict=True):
        scan["sha256"] = report["sha256"]
    split = {n: [[os.path.relpath(s["image"], root), s.get("sha256")] for s in subsets[n]] for n in subsets}
    fingerprint = hashlib.sha256(json.dumps([grid, split], sort_keys=True).encode()).hexdigest()[:16]
    return Cohort(content["name"], content["simulated"], *grid, **subsets, fingerprint=fingerprint)


def _of_contrasts(scans: list[dict], contrasts: Sequence[str], datalist: str) -> list[dict]:
    """The scans, those with several contrasts once for each of ``contrasts``."""
    if not contrasts:
        return scans
    bare = sum("contrasts" not in scan for scan in scans)
    lacking = sum(not {*contrasts} & {*scan.get("contrasts", contrasts)} for scan in scans)
    lacks = f"have none of {', '.join(contrasts)}: left out"
    for n, what in ((bare, "name no contrasts: used as they are"), (lacking, lacks)):
        if n:
            logger.warning(f"{datalist}: {n} of {len(scans)} scans {what}")
    return [one for scan in scans for one in one_per_contrast(scan, contrasts)]


def one_per_contrast(scan: dict, contrasts: Sequence[str]) -> list[dict]:
    """The scan once for each of ``contrasts`` that it has, as ``image``; a scan without ``contrasts`` as it is."""
    files = scan.get("contrasts")
    if files is None:
        return [scan]
    bare = {key: value for key, value in scan.items() if key != "contrasts"}
    return [{**bare, "image": files[name], "contrast": name} for name in contrasts if name in files]
