"""The table of all lesions in a derivative, as its masks are now, and what its columns are."""

import json
import logging
import re
from collections import Counter
from glob import glob
from pathlib import Path

import pandas

from scripts.common.errors import InputError
from scripts.common.files import replace_files
from scripts.data.bids import is_of_another_space
from scripts.data.reader import read_volume
from scripts.inference.derivative import LEGEND, MASK, TABLE, is_changed, read_ours, source_of
from scripts.inference.lesions import measure

logger = logging.getLogger("meshnet")
COLUMNS = json.loads(Path(__file__).with_name("lesion_columns.json").read_text())  # what each of them is


def write_table(folder: Path) -> None:
    """Write ``lesions.tsv`` over all masks in the ``folder``; another's sidecars are left out with a warning.

    Others may write into it at the same time: it is written again until none has come meanwhile, ten times at most, so
    that the last one has all.
    """
    paths, rows = None, []
    for _ in range(10):
        if paths == (there := _sidecars(folder)):
            break
        paths, rows = there, [row for path in there if (row := _row(path, folder))]
        if rows or (folder / TABLE).exists():
            table = pandas.DataFrame(rows, columns=["mask", *COLUMNS, "scan"]).round(6)
            with replace_files([folder / TABLE, folder / LEGEND]) as (file, legend):
                table.to_csv(file, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
                legend.write(json.dumps(COLUMNS, indent=4) + "\n")
    if rows:
        logger.info(f"Masks, pictures and {TABLE} ({len(rows)} scans): {folder}")
    _warn_of_twins(folder, rows)


def lesions_in(folder: Path) -> list[dict]:
    """The rows of ``lesions.tsv``, of the masks in the ``folder`` as they are now, with what else ``measure`` says."""
    rows = [row for path in _sidecars(folder) if (row := _row(path, folder))]
    _warn_of_twins(folder, rows)
    return rows


def _sidecars(folder: Path) -> list[Path]:
    """Those of masks in their scans' own space; hidden folders, in which files are written, are not looked into."""
    names = glob(f"**/*_{MASK.replace('.nii.gz', '.json')}", root_dir=folder, recursive=True)
    return [path for name in sorted(names) if not is_of_another_space(path := folder / name)]


def _warn_of_twins(folder: Path, rows: list[dict]) -> None:
    for scan, n in Counter(row["scan"] for row in rows).items():
        if n > 1 and scan.startswith("bids:raw:sub-"):
            logger.warning(f"{folder}: {scan} has {n} masks; move those of an older version or of another dataset")


def _row(path: Path, folder: Path) -> dict | None:
    """Of the sidecar at ``path``; None if it is another's, or without a mask that can be read."""
    sidecar, mask = read_ours(path), path.with_suffix(".nii.gz")
    if sidecar is None:
        logger.warning(f"{path}: not a sidecar of this bundle, so not in {TABLE}")
    if sidecar is None or not mask.exists():
        return None
    lesions, changed = sidecar.get("Lesions", {}), is_changed(sidecar, mask)
    if changed or "MaskSHA256" not in sidecar:
        try:
            volume = read_volume(mask)
        except InputError as error:
            logger.warning(f"{error}; not in {TABLE}")
            return None
        lesions = lesions | measure(volume.data > 0, volume.affine, lesions.get("midline"))
        lesions["quality"] = None if changed else lesions.get("quality")  # of the predictions, which drew another
    maker = sidecar["GeneratedBy"][0]
    told = {key: (maker.get("Settings") or {}).get(key) for key in ("threshold", "min_volume")}
    told |= {"device": maker.get("Device"), "precision": maker.get("Precision")}
    told["changed_by_hand"] = str(changed).lower() if "MaskSHA256" in sidecar else None
    names, hashes = ([v] if isinstance(v, str) else v for v in (maker.get(k, []) for k in ("Weights", "WeightsSHA256")))
    told["weights"] = ", ".join(f"{name} ({digest[:8]})" for name, digest in zip(names, hashes, strict=False)) or None
    cells = {"mask": mask.relative_to(folder).as_posix(), "scan": source_of(sidecar), "weights": told.pop("weights")}
    cells = {key: cell and re.sub(r"^(?=[=+\-@\s])", "./", cell) for key, cell in cells.items()}  # no formula
    return {**lesions, **told, **cells}
