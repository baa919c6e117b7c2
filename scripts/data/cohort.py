"""MONAI's datalist readers know no grid and no nested folds: this reads a cohort, every field checked."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from scripts.common.errors import InputError
from scripts.data.check_scans import check_scans, refuse_bad_scans


@dataclass(frozen=True)
class Cohort:
    """One outer (and inner) split of a cohort; a scan is a datalist entry with absolute ``image`` and ``label`` paths.

    A scan that was checked has ``sha256`` of both files.
    ``spacing`` is in mm and ``spatial_size`` in voxels, both in RAS order. ``fingerprint`` is a hash of the grid, the
    split and the content of the files that were checked: the same for a copy of the cohort in another folder.
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
        """First 16 hex digits of the SHA-256 of each image that training or validation reads."""
        return sorted(scan["sha256"]["image"][:16] for scan in self.training + self.validation)


def load_cohort(
    dataset_dir: str,
    datalist: str,
    fold: int,
    inner_fold: int | str | None,
    check: tuple[str, ...] = ("training", "validation"),
) -> Cohort:
    """Read ``datalist`` (schema: docs/cohorts.md) and split it.

    Args:
        dataset_dir: the folder that the datalist's paths start from.
        datalist: path of a ``datalist.json`` as ``scripts/prepare_datalist.py`` writes it.
        fold: outer fold held out as the test set.
        inner_fold: inner fold held out for validation, or None (on a command line ``none``) to train on
            everything outside the outer fold, without validation.
        check: subsets whose files are opened and read in full before anything else happens.

    Raises:
        InputError: the datalist, a fold or a file is not usable; the message has one line per problem.
    """
    root = Path(dataset_dir).resolve()
    if not root.is_dir():
        raise InputError(f"dataset_dir {dataset_dir}: no such folder")
    content = read_datalist(Path(datalist))
    n_outer, n_inner = content["outer_folds"], content["inner_folds"]
    inner_fold = None if str(inner_fold).lower() in ("none", "null") else inner_fold
    _check_fold("fold", fold, n_outer)
    if inner_fold is not None:
        _check_fold("inner_fold", inner_fold, n_inner)

    subsets: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    for scan in content["training"]:
        scan = {**scan, "image": str(root / scan["image"]), "label": str(root / scan["label"])}
        held_out = scan["fold"] == fold
        validates = inner_fold is not None and scan["inner_folds"][fold] == inner_fold
        subsets["test" if held_out else "validation" if validates else "training"].append(scan)
    grid = tuple(content["spacing"]), tuple(content["spatial_size"])
    checked = [scan for name in check for scan in subsets[name]]
    reports = check_scans(checked, *grid, cache=Path(datalist).with_suffix(".checked.json"))
    refuse_bad_scans(checked, reports, lesion_needed=subsets["training"])
    for scan, report in zip(checked, reports, strict=True):
        scan["sha256"] = report["sha256"]
    split = {
        name: [[str(Path(scan["image"]).relative_to(root)), scan.get("sha256")] for scan in subset]
        for name, subset in subsets.items()
    }
    fingerprint = hashlib.sha256(json.dumps([grid, split], sort_keys=True).encode()).hexdigest()[:16]
    return Cohort(content["name"], content["simulated"], *grid, **subsets, fingerprint=fingerprint)


def _check_fold(key: str, value: int, n_folds: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n_folds:
        raise InputError(f"{key} {value}: this cohort has {key}s 0 to {n_folds - 1}")


_SCAN_TYPES = {
    "image": str,
    "label": str,
    "subject": str,
    "session": (str, type(None)),
    "acquisition": (str, type(None)),
    "lesion_volume": (int, float),
    "fold": int,
    "inner_folds": list,
}
_TOP_TYPES = {
    "name": str,
    "simulated": bool,
    "spacing": list,
    "spatial_size": list,
    "outer_folds": int,
    "inner_folds": int,
    "training": list,
}


def read_datalist(path: Path) -> dict:
    """The datalist's content, every field checked."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; write it with `python scripts/prepare_datalist.py --dataset_dir DIR`")
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); write it again with scripts/prepare_datalist.py") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, got a {type(content).__name__}; see docs/cohorts.md")
    problems = _wrong_types(content, _TOP_TYPES)
    if not problems:
        if len(content["spacing"]) != 3 or not all(isinstance(s, (int, float)) and s > 0 for s in content["spacing"]):
            problems.append(f"spacing must be three positive numbers in mm, got {content['spacing']}")
        if len(content["spatial_size"]) != 3 or not all(isinstance(s, int) and s > 0 for s in content["spatial_size"]):
            problems.append(f"spatial_size must be three positive integers, got {content['spatial_size']}")
        if not content["training"]:
            problems.append("training is empty")
        problems += _wrong_scans(content)
    if problems:
        raise InputError("\n".join(f"{path}: {problem}" for problem in problems))
    return content


def _wrong_types(entry: dict, types: dict) -> list[str]:
    missing = [f"{key} is missing" for key in types if key not in entry]
    wrong = [
        f"{key} is {entry[key]!r}, which has the wrong type"
        for key, kind in types.items()
        if key in entry and (not isinstance(entry[key], kind) or (kind is int and isinstance(entry[key], bool)))
    ]
    return missing + wrong


def _wrong_scans(content: dict) -> list[str]:
    n_outer, n_inner = content["outer_folds"], content["inner_folds"]
    problems, fold_of, images = [], {}, set()
    for i, scan in enumerate(content["training"]):
        entry = f"training[{i}]"
        if not isinstance(scan, dict):
            problems.append(f"{entry} is not an object")
            continue
        entry += f" ({scan.get('subject')})"
        wrong = _wrong_types(scan, _SCAN_TYPES)
        if not wrong:
            if scan["image"] in images:
                wrong.append(f"image {scan['image']} is in the datalist twice")
            images.add(scan["image"])
            folds = (scan["fold"], scan["inner_folds"])
            if not 0 <= scan["fold"] < n_outer:
                wrong.append(f"fold is {scan['fold']}, expected 0 to {n_outer - 1}")
            elif len(scan["inner_folds"]) != n_outer or any(
                (k is not None) if outer == scan["fold"] else k not in range(n_inner)
                for outer, k in enumerate(scan["inner_folds"])
            ):
                wrong.append(
                    f"inner_folds is {scan['inner_folds']}, expected {n_outer} values from 0 to {n_inner - 1}, "
                    f"null at the scan's own fold {scan['fold']}"
                )
            elif fold_of.setdefault(scan["subject"], folds) != folds:
                wrong.append("another scan of this subject is in another fold")
        problems += [f"{entry}: {what}" for what in wrong]
    return problems
