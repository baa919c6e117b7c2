"""Write the table of an evaluation: ``metrics.csv`` with a row per scan, ``summary.json`` with the pooled figures."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from ignite.engine import Engine, Events

from scripts.common.files import replace_file
from scripts.common.json_file import write_json
from scripts.evaluation.metrics import over_subjects, per_subject

logger = logging.getLogger("meshnet")
COLUMNS = ("subject", "session", "acquisition", "contrast", "lesion_volume")


@dataclass(eq=False)
class SubjectTable:
    """At the end of an evaluation, writes every subject's metrics and prints their mean, sd and median.

    A metric that is undefined for a subject (AVD of an empty mask) is an empty cell and left out of the pooled figures,
    whose ``n`` says how many were defined; ``sd`` is the sample's (n - 1). What is measured over all subjects together
    (agreement of volumes) stands under ``over_subjects``.
    """

    scans: list[dict]  # those evaluated, in the loader's order
    output_dir: str  # folder of the two files
    facts: dict  # what else to put into ``summary.json``

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write and print; called when the evaluation is over."""
        columns = per_subject(engine, len(self.scans))
        known = pandas.DataFrame(self.scans)
        table = known[[key for key in COLUMNS if key in known]].assign(**columns, image=known["image"])
        path = Path(self.output_dir, "metrics.csv")
        if path.exists():
            logger.warning(f"{path}: an earlier evaluation's table is replaced")
        with replace_file(path) as file:
            table.round(6).map(harmless).to_csv(file, index=False, lineterminator="\n")
        pooled = table[list(columns)].agg(["count", "mean", "std", "median", "min", "max"]).T
        pooled = pooled.rename(columns={"count": "n", "std": "sd"}).astype({"n": int})
        summary = pooled.astype(object).where(np.isfinite(pooled), None).to_dict("index")  # JSON has no infinity
        together = {name: value if np.isfinite(value) else None for name, value in over_subjects(engine).items()}
        parts = {**self.facts, "metrics": summary, **({"over_subjects": together} if together else {})}
        write_json(path.with_name("summary.json"), parts)
        shown = pooled.to_string(float_format="{:.3f}".format, na_rep="-", col_space=8)
        shown += "".join(f"\n{name}  {'-' if value is None else f'{value:.3f}'}" for name, value in together.items())
        logger.info(f"{len(table)} test scans\n{shown}\nPer subject: {path}; pooled: summary.json beside it")


def harmless(cell: Any) -> Any:
    """Make a table's cell harmless in a spreadsheet: a text that begins a formula gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
