"""What people decided on the masks of a derivative: ``group/decisions.tsv``, as the group's page saves it."""

import functools
import logging
from pathlib import Path

import pandas

from scripts.common.errors import InputError
from scripts.common.files import sha256

logger = logging.getLogger("meshnet")
DECISIONS = "group/decisions.tsv"
WORDS = ("accept", "reject", "correct")


def read_decisions(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """Decision and note of each mask, None for what is not given, by its path in the derivative's ``folder``.

    Without the file there are none. Of two rows on one mask the last counts.

    Raises:
        InputError: the file cannot be read, lacks a column, or has a decision that is none.
    """
    path = folder / DECISIONS
    if not path.exists():
        return {}
    try:
        texts = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        table = pandas.read_csv(path, sep="\t", **texts).apply(lambda column: column.str.strip())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); save it again from index.html") from error
    if missing := {"mask", "decision", "note"} - {*table}:
        raise InputError(f"{path}: no column {', '.join(sorted(missing))}; it has: {', '.join(table)}")
    found = {}
    for number, row in enumerate(table.to_dict("records"), 2):
        decision, note = (None if row[key] in ("", "n/a") else row[key] for key in ("decision", "note"))
        if decision not in (*WORDS, None):
            raise InputError(f"{path}: row {number}: decision {decision!r}: expected one of {', '.join(WORDS)}")
        judged, mask = row.get("mask_sha256", "n/a"), folder / row["mask"]
        if judged not in ("", "n/a") and mask.exists() and judged != sha256(mask):
            logger.warning(f"{path}: {row['mask']}: is another mask than the one that was judged; decide again")
            decision = None
        found[Path(row["mask"]).as_posix()] = decision, note
    return found


def rejected(masks: list[Path]) -> set[Path]:
    """Those of ``masks`` that the derivative rejects that they lie in, the nearest above with decisions."""
    read, found = functools.cache(read_decisions), set()
    for mask in masks:
        folder = next((folder for folder in mask.parents if read(folder)), mask.parent)
        if read(folder).get(mask.relative_to(folder).as_posix(), (None,))[0] == "reject":
            found.add(mask)
    return found
