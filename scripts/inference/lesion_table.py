"""The table of all lesions in a derivative, and what its columns are."""

import json
import logging
import re
from pathlib import Path

import pandas

from scripts.common.files import replace_file
from scripts.inference.derivative import LEGEND, SIDECAR, TABLE, read_ours

logger = logging.getLogger("meshnet")
COLUMNS = {
    "lesion_volume": {"Description": "Volume of the mask, in the scan's own grid", "Units": "mm3"},
    "lesions": {"Description": "Connected parts of the mask; voxels that share a corner are connected"},
    "left_volume": {"Description": "Part of the volume left of the middle of the head", "Units": "mm3"},
    "right_volume": {"Description": "The rest of the volume", "Units": "mm3"},
    "laterality": {"Description": "(left - right) / (left + right), n/a without a lesion"},
    "quality": {
        "Description": "Agreement of the predictions: mean DICE of their pairs; n/a of one, or of none with a lesion"
    },
    "norm_adaptation": {
        "Description": "Share of the scan's own statistics in its normalization, the largest of several networks'; "
        "n/a where these have none"
    },
    "unusual": {
        "Description": "In what the scan is unlike those the weights were trained on; n/a: in nothing, or unknown"
    },
}


def write_table(folder: Path) -> None:
    """Write ``lesions.tsv`` over all masks in the ``folder``; another's sidecars are left out with a warning.

    Others may write into it at the same time: it is written again until none has come meanwhile, so that the last one
    has all.
    """
    paths, rows = None, []
    while paths != (there := sorted(folder.rglob(f"*_desc-lesion_{SIDECAR}"))):
        paths, rows = there, [row for path in there if (row := _row(path, folder))]
        if rows:
            table = pandas.DataFrame(rows, columns=["mask", *COLUMNS, "scan"]).round(6)
            with (
                replace_file(folder / TABLE) as file,
                replace_file(folder / LEGEND) as legend,
            ):
                table.to_csv(file, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
                legend.write(json.dumps(COLUMNS, indent=4) + "\n")
    if rows:
        logger.info(f"Masks, pictures and {TABLE} ({len(rows)} scans): {folder}")


def _row(path: Path, folder: Path) -> dict | None:
    """Of the sidecar at ``path``; None if it is another's."""
    sidecar = read_ours(path)
    if sidecar is None:
        logger.warning(f"{path}: not a sidecar of this bundle, so not in {TABLE}")
        return None
    mask = path.relative_to(folder).with_suffix(".nii.gz").as_posix()
    scan = sidecar["Sources"][0] if "Sources" in sidecar else Path(sidecar["Source"]["Path"]).name  # 0.4.0
    mask, scan = (re.sub(r"^(?=[=+\-@\s])", "./", cell) for cell in (mask, scan))  # no spreadsheet's formula
    return {"mask": mask, **sidecar["Lesions"], "scan": scan}
