"""MONAI writes no datalist of a BIDS tree or a table: this finds a cohort's scans and measures their lesions."""

import json
import os
import re
import shlex
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from csv import DictReader
from itertools import dropwhile
from math import inf
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.common.errors import InputError
from scripts.data.cohort import read_datalist
from scripts.data.folds import assign_folds
from scripts.data.volumes import is_annexed, read_volume


def prepare_datalist(
    dataset_dir: str | None = None,
    *,
    csv: str | None = None,
    keep_tse: bool = False,
    suffix: str = "T2w",
    outer_folds: int = 3,
    inner_folds: int = 3,
    seed: int = 0,
    spacing: float | tuple[float, float, float] = 1.0,
    spatial_size: int | tuple[int, int, int] = 256,
    name: str | None = None,
    output: str | None = None,
) -> str:
    """Write a cohort's datalist.json: its scans, their lesion volumes, and nested folds that never split a subject.

    Args:
        dataset_dir: BIDS folder with lesion masks under derivatives/; with ``csv``, where relative paths start.
        csv: table to use instead of BIDS names, with columns ``image,label`` and maybe ``subject,session,acquisition``.
            A subject that is not given is the path's ``sub-``; without one, the image's file name, or its whole path
            where other images have that name too. So give it where a person has several scans.
        keep_tse: keep the scans whose ``acq-`` starts with tse.
        suffix: BIDS suffix of the images.
        outer_folds: folds to test on, stratified by quartile of lesion volume and by acquisition.
        inner_folds: folds to validate on, of the subjects outside each outer fold.
        seed: seed of the folds.
        spacing: voxel size in mm of the grid that scans are resampled to: one number, or three in RAS order.
        spatial_size: size of that grid in voxels: one number, or three in RAS order.
        name: the cohort's name; default: from dataset_description.json, else the folder's.
        output: file to write; default: datalist.json in ``dataset_dir``.

    Returns:
        Path of the file written.

    Raises:
        InputError: something is not usable and nothing was written; the message has one line per problem.
    """
    if not isinstance(keep_tse, bool):  # Fire reads `--keep_tse false` as a text, which would count as true
        raise InputError(f"keep_tse {keep_tse}: expected True or False")
    for key, value, low in (("outer_folds", outer_folds, 2), ("inner_folds", inner_folds, 2), ("seed", seed, 0)):
        if type(value) is not int or not low <= value < 2**32:
            raise InputError(f"{key} {value}: expected a whole number, at least {low}")
    grid = {"spacing": [float(mm) for mm in _three("spacing", spacing, (int, float))]}
    grid["spatial_size"] = _three("spatial_size", spatial_size, int)
    root, target = _places(dataset_dir, csv, output)
    description = _description(root)

    scans = _scans_in_bids(root, str(suffix)) if csv is None else _scans_in_csv(Path(str(csv)), root)
    scans = _select(scans, keep_tse)
    _check_files(root, scans)
    scans.sort(key=lambda scan: scan["image"])
    _measure_lesions(root, scans)
    assign_folds(scans, outer_folds, inner_folds, seed)

    content = {"name": str(name or description.get("Name") or root.name)}
    content |= {"simulated": description.get("Simulated") is True, **grid, "seed": seed}
    _write(target, content | {"outer_folds": outer_folds, "inner_folds": inner_folds, "training": scans})
    print(f"{_summary(scans, outer_folds)}\n\nWritten: {target}")
    option = "" if target == root / "datalist.json" else f" --datalist {shlex.quote(str(target))}"
    command = "python -m monai.bundle run training --config_file configs/train.json"
    print(f"Next: {command} --dataset_dir {shlex.quote(str(root))}{option}")
    return str(target)


def _three(key: str, value: object, kind: type | tuple[type, ...]) -> list:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3 or not all(isinstance(v, kind) and v is not True and 0 < v < inf for v in values):
        numbers = "whole number of voxels" if kind is int else "number of mm"
        raise InputError(f"{key} {value}: expected a positive {numbers}, or three")
    return values


def _places(dataset_dir: str | None, csv: str | None, output: str | None) -> tuple[Path, Path]:
    """The dataset's folder and the file to write."""
    if dataset_dir is None and csv is None:
        raise InputError("give --dataset_dir, the folder of a BIDS dataset, or --csv, a table of images and labels")
    root = Path(os.path.abspath(str(dataset_dir) if dataset_dir is not None else Path(str(csv)).parent))
    if not root.is_dir():
        raise InputError(f"dataset_dir {root}: no such folder")
    target = Path(os.path.abspath(str(output))) if output is not None else root / "datalist.json"
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"{target}: cannot be written; give another file as --output")
    return root, target


def _description(root: Path) -> dict:
    path = root / "dataset_description.json"
    try:
        return json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _scans_in_bids(root: Path, suffix: str) -> list[dict]:
    """Every lesion mask drawn on a ``suffix`` image, with the path that this image must have."""
    scans = []
    for mask in sorted(root.glob("derivatives/**/*lesion*mask.nii*")):
        label = mask.relative_to(root)
        parts = _stem(label.name).split("_")
        drawn_on = [part for part in parts if "-" not in part and not re.search("lesion|mask", part)]
        if not label.name.endswith((".nii", ".nii.gz")) or drawn_on not in ([], [suffix]):
            continue
        entities = [part for part in parts if "-" in part and not re.match("desc-|label-|space-orig$", part)]
        folders = dropwhile(lambda folder: not folder.startswith("sub-"), label.parts[:-1])
        image = Path(*folders, "_".join([*entities, suffix]) + ".nii").as_posix()
        image += "" if os.path.lexists(root / image) else ".gz"
        scans.append(_scan(label.as_posix(), {"image": image, "label": label.as_posix()}))
    if not scans:
        raise InputError(
            f"{root}: no lesion mask of {suffix} scans; looked for derivatives/**/*lesion*mask.nii.gz or .nii, such as "
            f"derivatives/lesion_masks/sub-1/anat/sub-1_{suffix}_desc-lesion_mask.nii.gz; --csv takes other layouts"
        )
    return scans


def _scans_in_csv(path: Path, root: Path) -> list[dict]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = [{"row": reader.line_num, **{key: (row[key] or "").strip() for key in columns}} for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"csv {path}: cannot be read ({error})") from error
    missing = [key for key in ("image", "label") if key not in columns]
    if missing or not rows:
        problem = f"no column {' and '.join(missing)}; it has: {', '.join(columns)}" if missing else "no row"
        raise InputError(f"csv {path}: {problem}")
    for row in rows:
        for key in ("image", "label"):
            row[key] = row[key] and os.path.abspath(root / row[key]).removeprefix(f"{root}{os.sep}")
    return [_scan(f"{path}: row {row['row']}", row) for row in rows]


def _stem(path: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", path)


def _scan(origin: str, given: dict) -> dict:
    """A datalist entry, completed from the image's path; ``origin`` is what messages call it."""
    scan = {"origin": origin, "image": given["image"], "label": given["label"]}
    for key, entity in (("subject", "sub"), ("session", "ses"), ("acquisition", "acq")):
        in_path = re.findall(rf"(?:^|[/_]){entity}-([^/_.]+)", given["image"])
        scan[key] = given.get(key, "").removeprefix(f"{entity}-") or (in_path[-1] if in_path else None)
    return scan


def _select(scans: list[dict], keep_tse: bool) -> list[dict]:
    """The scans to use, each with a subject."""
    kept = [scan for scan in scans if keep_tse or not (scan["acquisition"] or "").startswith("tse")]
    if not kept:
        raise InputError(f"all {len(scans)} scans are acq-tse; --keep_tse keeps them")
    if len(kept) < len(scans):
        print(f"Left out: {len(scans) - len(kept)} acq-tse scans (--keep_tse keeps them)")
    unnamed = {scan["image"]: _stem(os.path.basename(scan["image"])) for scan in kept if scan["subject"] is None}
    namesakes = Counter(unnamed.values())
    for scan in kept:
        if scan["subject"] is None:  # a/T2.nii.gz and b/T2.nii.gz are two people
            file = unnamed[scan["image"]]
            scan["subject"] = file if namesakes[file] == 1 else _stem(scan["image"])
    return kept


def _check_files(root: Path, scans: list[dict]) -> None:
    problems, images = [], set()
    for scan in scans:
        origin = scan.pop("origin")
        for key in ("image", "label"):
            if not os.path.lexists(root / scan[key]) or (root / scan[key]).is_dir():
                problems.append(f"{origin}: {key} '{scan[key]}' does not exist")
        if scan["image"] in images:
            problems.append(f"{origin}: image '{scan['image']}' has another mask already")
        images.add(scan["image"])
    if problems:
        raise InputError("\n".join(problems[:10] + [f"and {len(problems) - 10} more"] * (len(problems) > 10)))
    files = [scan[key] for scan in scans for key in ("image", "label")]
    absent = [file for file in files if is_annexed(root / file)]
    if absent:
        fetch = f"cd {shlex.quote(str(root))} && datalad get {' '.join(sorted({_pattern(file) for file in absent}))}"
        raise InputError(f"{len(absent)} of {len(files)} files have no content here, only git-annex links: {fetch}")


def _pattern(file: str) -> str:
    """What `datalad get` takes for ``file`` and its like, as a command line has no room for hundreds of paths."""
    *folders, name = re.sub(r"(?<![^/])(sub|ses)-[^/]*/", r"\1-*/", file).split("/")
    return "/".join(folders[:2] if folders[:1] == ["derivatives"] else [*folders, re.sub(".*_", "*_", name)])


def _measure_lesions(root: Path, scans: list[dict]) -> None:
    """Set every scan's ``lesion_volume``, in mm3."""

    def measure(scan: dict) -> str | None:
        try:
            image, mask = read_volume(root / scan["label"])
        except InputError as error:
            return str(error)
        n_voxels = np.count_nonzero(mask > 0)  # never > 0.5: a scale slope can make a lesion's voxels 0.017
        scan["lesion_volume"] = round(float(n_voxels * abs(np.linalg.det(image.affine[:3, :3]))), 1)
        return None

    with ThreadPoolExecutor(8) as pool:  # not one per core: each may hold a whole volume in float64
        problems = [p for p in tqdm(pool.map(measure, scans), "Reading masks", len(scans), leave=False) if p]
    if problems:
        raise InputError("\n".join(problems))
    for scan in scans:
        if scan["lesion_volume"] == 0:
            print(f"Warning: {scan['label']}: its lesion volume is 0")


def _write(path: Path, content: dict) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(content, indent=4) + "\n")
        read_datalist(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _summary(scans: list[dict], n_folds: int) -> str:
    acquisitions = sorted({scan["acquisition"] or "no acq" for scan in scans})
    titles = ["fold", "subjects", "scans", *acquisitions]
    lines = ["".join(f" {title:>9}" for title in titles) + "   lesion volume in mL, median [min-max]"]
    for fold in (*range(n_folds), "all"):
        part = [scan for scan in scans if fold in (scan["fold"], "all")]
        acquired = Counter(scan["acquisition"] or "no acq" for scan in part)
        counts = [len({scan["subject"] for scan in part}), len(part), *(acquired[a] for a in acquisitions)]
        ml = np.array([scan["lesion_volume"] for scan in part]) / 1000
        volume = f"   {np.median(ml):.1f} [{ml.min():.1f}-{ml.max():.1f}]"
        lines.append("".join(f" {cell:>9}" for cell in (fold, *counts)) + volume)
    return "\n".join(lines)
