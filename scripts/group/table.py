"""The group's table: a row for each mask, as it is now, beside what is known of the participant."""

import json
import logging
from pathlib import Path

import pandas

from scripts.common.errors import InputError
from scripts.common.files import replace_files
from scripts.data.bids import entities, read_description
from scripts.data.decisions import DECISIONS, read_decisions
from scripts.inference.derivative import MASK, PICTURE
from scripts.inference.lesion_table import COLUMNS as LESION_COLUMNS
from scripts.inference.lesion_table import lesions_in

logger = logging.getLogger("meshnet")
KEY = "participant_id"
COLUMNS = json.loads(Path(__file__).with_name("columns.json").read_text())  # what each of them is
NAMES = COLUMNS["names"]
MEASURED = ("lesion_volume", "lesions", "left_volume", "right_volume", "laterality", "quality", "unusual")
MEASURED = (*MEASURED, "changed_by_hand", "weights", "threshold", "min_volume")
LEGEND = {**NAMES, **{key: LESION_COLUMNS[key] for key in MEASURED}, **COLUMNS["others"]}  # in their order


def rows_of(output_dir: Path, participants: Path | None) -> list[dict]:
    """A row for each mask in a derivative, with the keys of ``LEGEND`` and those that ``participants`` adds.

    Volumes are in mm3, of the masks as they are on the disk. What is not known is None. Rejected masks have a row, too.

    Args:
        output_dir: folder of the derivative, as ``configs/inference.json`` writes it.
        participants: the dataset's ``participants.tsv``, if there is one. A column of a name that the table has
            already gets ``participants_`` in front.

    Raises:
        InputError: a table that people wrote cannot be used.
    """
    decisions, known = read_decisions(output_dir), {} if participants is None else _read_participants(participants)
    rows = []
    for found in lesions_in(output_dir):
        has, mask = entities(found["mask"]), found["mask"]
        row = dict.fromkeys(LEGEND) | {key: found.get(key) for key in MEASURED}
        row |= {KEY: has.get("sub") and f"sub-{has['sub']}", "session_id": has.get("ses") and f"ses-{has['ses']}"}
        picture = mask.replace(MASK, PICTURE)
        row |= {"acq": has.get("acq"), "run": has.get("run"), "mask": mask, "scan": found["scan"]}
        row |= {"picture": picture if (output_dir / picture).is_file() else None}
        row["decision"], row["note"] = decisions.pop(Path(mask).as_posix(), (None, None))
        rows.append(row | known.get(row[KEY], dict.fromkeys(next(iter(known.values()), {}))))
    for mask in decisions:
        logger.warning(f"{output_dir / DECISIONS}: {mask}: there is no such mask; its decision is not used")
    if known and (unknown := sorted({str(row[KEY]) for row in rows} - {*known})):
        logger.warning(f"{participants}: has no row for {', '.join(unknown)}")
    return rows


def write_lesions(output_dir: Path, rows: list[dict], participants: Path | None) -> Path:
    """Write ``rows`` as ``group/lesions.tsv``, and as ``group/lesions.json`` what the columns are.

    Raises:
        InputError: they cannot be written.
    """
    path = output_dir / "group" / "lesions.tsv"
    said = {} if participants is None else read_description(participants.with_suffix(".json"))
    columns = list(dict.fromkeys([*LEGEND, *(key for row in rows for key in row)]))
    said = {key: said.get(key.removeprefix("participants_"), {}) for key in columns} | LEGEND
    with replace_files([path, path.with_suffix(".json")]) as (table, file):
        frame = pandas.DataFrame(rows, columns=columns).round(6)
        frame.to_csv(table, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
        file.write(json.dumps({key: said[key] for key in columns}, indent=4) + "\n")
    return path


def _read_participants(path: Path) -> dict[str, dict]:
    """The other columns of each participant, texts as they stand there, by "sub-" and the label."""
    try:
        texts = {"dtype": str, "keep_default_na": False, "na_values": ["n/a", ""], "encoding": "utf-8-sig"}
        table = pandas.read_csv(path, sep="\t", **texts)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); repair or move it") from error
    if KEY not in table:
        raise InputError(f"{path}: no column {KEY}; it has: {', '.join(table)}")
    keys = [f"sub-{str(label).removeprefix('sub-')}" for label in table.pop(KEY)]
    if twins := sorted({key for key in keys if keys.count(key) > 1}):
        raise InputError(f"{path}: {', '.join(twins)}: more than one row; keep one, as a join needs")
    table = table.rename(columns={key: f"participants_{key}" for key in table if key in LEGEND})
    table = table.astype(object).where(table.notna(), None)
    return dict(zip(keys, table.to_dict("records"), strict=True))
