"""Finds lesion masks and the scans that they were drawn on, by their names in a BIDS dataset or in a table."""

import csv
import json
import os
import re
from collections import Counter
from itertools import dropwhile, takewhile
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.json_file import check_json, read_json

# Who drew a mask by hand (or simulated it, so that it is true), in the GeneratedBy of BIDS derivatives.
NO_PREDICTION = re.compile(r"(?i)manual|\bhand|\brater|traced|\bdrawn\b|itk-?snap|mricro|fsleyes|simulat")


def scans_in_bids(root: Path, suffix: str, labels: str | None) -> list[dict]:
    """Every lesion mask drawn on a ``suffix`` image, with the path that this image must have.

    Masks that software made are left out, with a printed line, unless ``labels`` names the folder they are in; where
    no mask is left, that is an ``InputError``.
    """
    folder = _labels_folder(root, labels) if labels is not None else root / "derivatives"
    scans, left_out = [], Counter()
    for mask in sorted(folder.glob("**/*lesion*mask.nii*")):
        parts = stem(mask.name).split("_")
        drawn_on = [part for part in parts if "-" not in part and not re.search("lesion|mask", part)]
        if not mask.name.endswith((".nii", ".nii.gz")) or drawn_on not in ([], [suffix]):
            continue
        label = below(root, mask)
        software = made_by(root, mask) if labels is None else None
        if software is not None:
            left_out["/".join(label.split("/")[:2]), software] += 1
            continue
        entities = [part for part in parts if "-" in part and not re.match("desc-|label-|space-orig$", part)]
        folders = dropwhile(lambda name: not name.startswith("sub-"), label.split("/")[:-1])
        image = Path(*folders, "_".join([*entities, suffix]) + ".nii").as_posix()
        image += "" if os.path.lexists(root / image) else ".gz"
        scans.append(_scan(label, {"image": image, "label": label}))
    for (where, software), n in left_out.items():
        print(f"Left out: {n} masks in {where}, made by {software} (--labels {where} takes them)")
    if not scans:
        kind = "lesion mask that people drew" if left_out else "lesion mask"
        where = below(root, folder)
        raise InputError(
            f"{root}: no {kind} of {suffix} scans; looked for {where}/**/*lesion*mask.nii.gz or .nii, such as "
            f"{where}/{'' if labels else 'lesion_masks/'}sub-1/anat/sub-1_{suffix}_desc-lesion_mask.nii.gz; "
            "--csv takes other layouts"
        )
    return scans


def scans_in_csv(path: Path, root: Path) -> list[dict]:
    """The rows of a table, whose paths start at ``root``; an ``InputError`` if it has no ``image`` and ``label``."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            rows = [{"row": reader.line_num, **{key: (row[key] or "").strip() for key in columns}} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"csv {path}: cannot be read ({error})") from error
    missing = [key for key in ("image", "label") if key not in columns]
    if missing or not rows:
        problem = f"no column {' and '.join(missing)}; it has: {', '.join(columns)}" if missing else "no row"
        raise InputError(f"csv {path}: {problem}")
    for row in rows:
        for key in ("image", "label"):
            row[key] = row[key] and below(root, root / row[key])
    return [_scan(f"{path}: row {row['row']}", row) for row in rows]


def made_by(root: Path, mask: Path) -> str | None:
    """The software that made ``mask``, by its sidecar or its derivative's description; None if none says so."""
    folders = takewhile(lambda folder: folder != root, mask.parents)
    sidecar = mask.with_name(f"{stem(mask.name)}.json")
    for path in (sidecar, *(folder / "dataset_description.json" for folder in folders)):
        says = description(path)
        makers = says.get("GeneratedBy") or says.get("PipelineDescription")  # the latter before BIDS 1.4
        if says.get("Manual") is True:
            return None
        if makers and says.get("DatasetType") != "raw":
            told = re.findall(r'"(?:Name|Description)": "(.*?)"', json.dumps(makers)) or [str(makers)]
            return None if any(map(NO_PREDICTION.search, told)) else told[0]
    return None


def description(path: Path) -> dict:
    """The JSON object at ``path``, a sidecar or a dataset's description; empty where there is no file."""
    content = read_json(path, "repair or delete it") if path.is_file() else {}
    check_json(path, content, {"type": "object"}, "repair or delete it")
    return content


def stem(path: str) -> str:
    """``path`` without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", path)


def below(root: Path, path: Path) -> str:
    """``path`` from ``root`` on where it is below it, else whole; normalised."""
    return os.path.abspath(path).removeprefix(f"{root}{os.sep}")


def _labels_folder(root: Path, labels: str) -> Path:
    for folder in (root / str(labels), Path(str(labels))):
        if folder.is_dir():
            return Path(os.path.abspath(folder))
    there = sorted(below(root, folder) for folder in root.glob("derivatives/*/"))
    raise InputError(f"labels {labels}: no such folder in {root} or here; its derivatives are: {', '.join(there)}")


def _scan(origin: str, given: dict) -> dict:
    """A datalist entry, completed from the image's path; ``origin`` is what messages call it."""
    scan = {"origin": origin, "image": given["image"], "label": given["label"]}
    for key, entity in (("subject", "sub"), ("session", "ses"), ("acquisition", "acq")):
        in_path = re.findall(rf"(?:^|[/_]){entity}-([^/_.]+)", given["image"])
        scan[key] = given.get(key, "").removeprefix(f"{entity}-") or (in_path[-1] if in_path else None)
    return scan
