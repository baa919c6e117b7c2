"""Find lesion masks and the scans that they were drawn on, by their names in a BIDS dataset or in a table."""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path

import pandas as pd

from scripts.common.errors import InputError
from scripts.common.json_file import check_json, read_json
from scripts.data.decisions import DECISIONS, rejected
from scripts.data.volume_files import stem, volumes_below
from scripts.data.volumes import is_annexed


def scans_in_bids(root: Path, suffix: str, labels: str | None, contrasts: Sequence[str] = ()) -> list[dict]:
    """Every lesion mask drawn on a ``suffix`` image, with the path that this image must have, and of ``contrasts``,
    other suffixes, the images that there are.

    Masks that software made are left out, with a printed line, unless ``labels`` names the folder they are in; where
    no mask is left, that is an ``InputError``.
    """
    folder = root / "derivatives"
    if labels is not None:
        folder = next((p for p in (root / str(labels), Path(str(labels))) if p.is_dir()), None)
        if folder is None:
            there = ", ".join(sorted(_below(root, path) for path in root.glob("derivatives/*/")))
            raise InputError(f"labels {labels}: no such folder in {root} or here; its derivatives are: {there}")
    scans, left_out = [], Counter()
    there = volumes_below(Path(os.path.abspath(folder)), "lesion.*mask")
    masks = [mask for mask in there if not is_of_another_space(mask)]
    if not_taken := rejected(masks):
        print(f"Left out: {len(not_taken)} masks that {DECISIONS} rejects, such as {_below(root, min(not_taken))}")
    for mask in masks:
        parts = stem(mask.name).split("_")
        drawn_on = [part for part in parts if "-" not in part and not re.search("lesion|mask", part)]
        if mask in not_taken or not re.search("lesion.*mask$", stem(mask.name)) or drawn_on not in ([], [suffix]):
            continue
        label = _below(root, mask)
        kept = [part for part in parts if "-" in part and not re.match("desc-|label-|space-orig$", part)]
        folders = [*dropwhile(lambda name: not name.startswith("sub-"), label.split("/")[:-1])]
        images = {c: os.path.join(*folders, "_".join([*kept, c]) + ".nii") for c in (suffix, *contrasts)}
        images = {c: path if os.path.lexists(root / path) else f"{path}.gz" for c, path in images.items()}
        there = {c: path for c, path in images.items() if c == suffix or os.path.lexists(root / path)}
        given = {"image": images[suffix], "label": label}
        scan = _scan(root, label, given | there, [*there] if contrasts else [])
        if labels is None and scan["software"]:
            left_out["/".join(label.split("/")[:2]), scan["software"]] += 1
        else:
            scans.append(scan)
    for (where, software), n in left_out.items():
        print(f"Left out: {n} masks in {where}, made by {software} (--labels {where} takes them)")
    if not scans:
        kind = "lesion mask that people drew" if left_out else "lesion mask"
        where = _below(root, folder)
        raise InputError(
            f"{root}: no {kind} of {suffix} scans; looked for {where}/**/*lesion*mask.nii.gz or .nii, such as "
            f"{where}/{'' if labels else 'lesion_masks/'}sub-1/anat/sub-1_{suffix}_desc-lesion_mask.nii.gz; "
            "--csv takes other layouts"
        )
    return scans


def scans_in_csv(path: Path, root: Path, contrasts: Sequence[str] = ()) -> list[dict]:
    """The rows of a table, whose paths start at ``root``; an ``InputError`` if it has no ``image``, ``label`` or one
    of ``contrasts``.
    """
    texts = {"dtype": str, "keep_default_na": False, "na_values": [""], "index_col": False, "encoding": "utf-8-sig"}
    try:
        table = pd.read_csv(path, skip_blank_lines=False, **texts).dropna(how="all").fillna("")
        table = table.apply(lambda column: column.str.strip())
    except (OSError, ValueError) as error:
        raise InputError(f"csv {path}: cannot be read ({error})") from error
    missing = [key for key in ("image", "label", *contrasts) if key not in table]
    if missing or table.empty:
        problem = f"no column {' and '.join(missing)}; it has: {', '.join(table)}" if missing else "no row"
        raise InputError(f"csv {path}: {problem}")
    rows = table.to_dict("index").items()
    return [_scan(root, f"{path}: row {number + 2}", row, contrasts) for number, row in rows]


def entities(path: str) -> dict[str, str]:
    """Of ``sub-1/anat/sub-1_acq-spc3_T2w.nii.gz``: {"sub": "1", "acq": "spc3"}; the name's go before its folders'."""
    return dict(re.findall(r"(?:^|[/_])([A-Za-z]+)-([^/_.]+)", path))


def is_of_another_space(path: Path) -> bool:
    """Whether a mask was brought to another space: the one that its name has without its ``space-`` lies beside."""
    name = re.sub(r"_space-(?!orig_)[^_]+", "", path.name)
    return name != path.name and path.with_name(name).exists()


def check_files(root: Path, scans: list[dict]) -> None:
    """Raise an ``InputError`` where a file is not there, or in two pairs; take the ``origin`` out of the scans."""
    problems, taken = [], set()
    for scan in scans:
        origin = scan.pop("origin")
        for name, path in scan.get("contrasts", {}).items():
            if not os.path.lexists(root / path) or (root / path).is_dir():
                problems.append(f"{origin}: {name} '{path}' does not exist")
        for key, other in (("image", "mask"), ("label", "image")):
            if not os.path.lexists(root / scan[key]) or (root / scan[key]).is_dir():
                problems.append(f"{origin}: {key} '{scan[key]}' does not exist")
            elif scan[key] in taken:
                hint = "; --labels takes the masks of one folder" if scan["label"].startswith("derivatives/") else ""
                problems.append(f"{origin}: {key} '{scan[key]}' has another {other} already{hint}")
            taken.add(scan[key])
    if problems:
        raise InputError("\n".join(problems[:10] + [f"and {len(problems) - 10} more"] * (len(problems) > 10)))
    images = ([scan["image"], *scan.get("contrasts", {}).values(), scan["label"]] for scan in scans)
    files = [path for paths in images for path in dict.fromkeys(paths)]
    if absent := [file for file in files if is_annexed(root / file)]:
        fetch = f"cd {shlex.quote(str(root))} && datalad get {' '.join(sorted({_pattern(file) for file in absent}))}"
        raise InputError(f"{len(absent)} of {len(files)} files have no content here, only git-annex links: {fetch}")


def read_description(path: Path) -> dict:
    """The JSON object at ``path``, a sidecar or a dataset's description; empty where there is no file."""
    content = read_json(path, "repair or delete it") if path.is_file() else {}
    check_json(path, content, {"type": "object"}, "repair or delete it")
    return content


def _scan(root: Path, origin: str, given: dict, contrasts: Sequence[str] = ()) -> dict:
    """A datalist entry, completed from the image's path, with those of ``contrasts`` that are given, the ``origin``
    that messages name, and ``software``.
    """
    scan = {"origin": origin}
    for key in ("image", "label"):
        scan[key] = given[key] and _below(root, root / given[key])
    if files := {name: _below(root, root / given[name]) for name in contrasts if given[name]}:
        scan["contrasts"] = files
    for key, entity in (("subject", "sub"), ("session", "ses"), ("acquisition", "acq")):
        scan[key] = given.get(key, "").removeprefix(f"{entity}-") or entities(scan["image"]).get(entity)
    return scan | {"software": _software(root, root / given["label"])}


def _software(root: Path, mask: Path) -> str | None:
    """What made ``mask``, by its sidecars or its derivative's description; None: people, our simulation, not said."""
    folders = [*takewhile(lambda folder: folder != root, mask.parents)] if root in mask.parents else [mask.parent]
    for says in (_inherited(mask, folders), *(read_description(f / "dataset_description.json") for f in folders)):
        if says.get("Manual") is True:
            return None
        makers = says.get("GeneratedBy") or says.get("PipelineDescription")  # as it was called before BIDS 1.4
        if makers and says.get("DatasetType") != "raw":
            told = re.findall(r'"(?:Name|Description)": "(.*?)"', json.dumps(makers)) or [str(makers)]
            return None if re.search("(?i)manual|simulate_cohort", " ".join(told)) else told[0]
    return None


def _inherited(mask: Path, folders: list[Path]) -> dict:
    """What the sidecars of ``mask`` in its ``folders``, from the inside out, say by BIDS's inheritance principle.

    A sidecar has the suffix of the mask and no entity that it lacks; the nearest wins, and of one folder the closest.
    """
    *entities, suffix = stem(mask.name).split("_")
    says = {}
    for folder in reversed(folders):
        names = [name.removesuffix(".json").split("_") for name in _names_in(folder) if name.endswith(".json")]
        ours = [name for name in names if name[-1] == suffix and {*name[:-1]} <= {*entities}]
        for name in sorted(ours, key=len):
            says |= read_description(folder / f"{'_'.join(name)}.json")
    return says


def _names_in(folder: Path) -> list[str]:
    """What lies in a folder; nothing if it cannot be listed, as where a mask does not exist, which is told later."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _below(root: Path, path: Path) -> str:
    """``path`` from ``root`` on where it is below it, else whole; normalised."""
    return os.path.abspath(path).removeprefix(f"{root}{os.sep}")


def _pattern(file: str) -> str:
    """What `datalad get` takes for ``file`` and its like, as a command line has no room for hundreds of paths."""
    *folders, name = re.sub(r"(?<![^/])(sub|ses)-[^/]*/", r"\1-*/", file).split("/")
    return "/".join(folders[:2] if folders[:1] == ["derivatives"] else [*folders, re.sub(".*_", "*_", name)])
