"""The files that describe a derivative as a whole: its description for BIDS, and the table of all its lesions."""

import csv
import json
import logging
import os
import re
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.files import replace_file
from scripts.inference.derivative import DESCRIPTION, MASK, PICTURE, SIDECAR, Derivative, read_ours

logger = logging.getLogger("meshnet")
TABLE, LEGEND = "lesions.tsv", "lesions.json"
COLUMNS = {
    "lesion_volume": {"Description": "Volume of the mask, in the scan's own grid", "Units": "mm3"},
    "lesions": {"Description": "Connected parts of the mask; voxels that share a corner are connected"},
    "left_volume": {"Description": "Part of the volume left of the middle of the head", "Units": "mm3"},
    "right_volume": {"Description": "The rest of the volume", "Units": "mm3"},
    "laterality": {"Description": "(left - right) / (left + right), n/a without a lesion"},
}


def refuse_foreign_files(folder: Path) -> None:
    """Raise InputError if the ``folder`` is described by files that this bundle did not make, as a raw dataset is."""
    if read_ours(folder / DESCRIPTION) is None:
        foreign = [folder / name for name in (DESCRIPTION, TABLE, LEGEND) if os.path.lexists(folder / name)]
        if foreign:
            lines = (f"{p}: not made by this bundle, so not replaced; give another --output_dir" for p in foreign)
            raise InputError("\n".join(lines))


def write_description(derivative: Derivative) -> None:
    """Write ``dataset_description.json``, and ``.bidsignore`` for what BIDS has no name for."""
    folder = derivative.folder
    description = {
        "Name": "Stroke lesion masks by MeshNet",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [derivative.made_by],
        "DatasetLinks": {"raw": Path(os.path.relpath(derivative.dataset, folder)).as_posix()},
    }
    _write_text(folder / DESCRIPTION, json.dumps(description, indent=4) + "\n")
    if not (folder / ".bidsignore").exists():
        _write_text(folder / ".bidsignore", f"*_{PICTURE}\n{TABLE}\n{LEGEND}\n")


def write_table(folder: Path) -> None:
    """Write ``lesions.tsv`` over all masks in the ``folder``; another's sidecars are left out with a warning."""
    rows = []
    for path in sorted(folder.rglob(f"*_desc-lesion_{SIDECAR}")):
        sidecar = read_ours(path)
        if sidecar is None:
            logger.warning(f"{path}: not a sidecar of this bundle, so not in {TABLE}")
            continue
        scan = sidecar["Sources"][0] if "Sources" in sidecar else Path(sidecar["Source"]["Path"]).name  # 0.4.0
        values = [sidecar["Lesions"][column] for column in COLUMNS]
        cells = ["n/a" if v is None else f"{v:.4g}" if abs(v) < 1 else f"{v:.10g}" for v in values]
        mask = path.with_name(path.name.removesuffix(SIDECAR) + MASK).relative_to(folder).as_posix()
        rows.append([_no_formula(mask), *cells, _no_formula(scan)])
    if rows:
        with replace_file(folder / TABLE, unique=True) as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([["mask", *COLUMNS, "scan"], *rows])
        _write_text(folder / LEGEND, json.dumps(COLUMNS, indent=4) + "\n")
        logger.info(f"Masks, pictures and {TABLE} ({len(rows)} scans): {folder}")


def _write_text(path: Path, text: str) -> None:
    with replace_file(path, unique=True) as file:  # other processes may write to this derivative, too
        file.write(text)


def _no_formula(path: str) -> str:
    """The same path, as no spreadsheet would execute it."""
    return re.sub(r"^(?=[=+\-@\s])", "./", path)
