"""MONAI's MetricsSaver writes a file a metric and no standard deviation: this is one table, a subject a row."""

import csv
import json
import logging
import math
import statistics
from pathlib import Path

from ignite.engine import Engine, Events

from scripts.common.files import replace_file

logger = logging.getLogger("meshnet")


class SubjectTable:
    """At the end of an evaluation, writes every subject's metrics and prints their mean, sd and median.

    ``metrics.csv`` has a row per scan, ``summary.json`` the pooled figures. A metric that is undefined for a
    subject (AVD of an empty mask) is an empty cell there and left out here; ``n`` says how many were defined.

    Args:
        scans: the scans evaluated, in the loader's order.
        metrics: column name and name of the engine's metric; the columns of a metric with several classes
            (DICE with background) are averaged.
        output_dir: folder of the two files.
        facts: what else to put into ``summary.json``.
    """

    def __init__(self, scans: list[dict], metrics: dict[str, str], output_dir: str, facts: dict) -> None:
        self.scans, self.metrics, self.output_dir, self.facts = scans, metrics, Path(output_dir), facts

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write and print; called when the evaluation is over."""
        details = engine.state.metric_details
        columns = {
            column: details[name].reshape(len(self.scans), -1).double().mean(1).tolist()
            for column, name in self.metrics.items()
        }
        path = self.output_dir / "metrics.csv"
        if path.exists():
            logger.warning(f"{path}: an earlier evaluation's table is replaced")
        with replace_file(path) as file:
            writer = csv.writer(file)
            facts = ("subject", "session", "acquisition", "lesion_volume")
            writer.writerow([*facts, *columns, "image"])
            for scan, *values in zip(self.scans, *columns.values(), strict=True):
                cells = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
                writer.writerow([*("" if scan[key] is None else scan[key] for key in facts), *cells, scan["image"]])
        summary = {column: _summary([v for v in values if not math.isnan(v)]) for column, values in columns.items()}
        with replace_file(self.output_dir / "summary.json") as file:
            file.write(json.dumps({**self.facts, "metrics": summary}, indent=4) + "\n")
        self._print(summary)

    def _print(self, summary: dict[str, dict]) -> None:
        names = ("n", "mean", "sd", "median", "min", "max")
        lines = [f"{'':22}" + "".join(f"{name:>9}" for name in names)]
        for column, values in summary.items():
            cells = (f"{'-' if v is None else v if isinstance(v, int) else f'{v:.3f}':>9}" for v in values.values())
            lines.append(f"{column:22}" + "".join(cells))
        logger.info(f"{len(self.scans)} test scans\n" + "\n".join(lines))
        logger.info(f"Per subject: {self.output_dir / 'metrics.csv'}; pooled: {self.output_dir / 'summary.json'}")


def _summary(values: list[float]) -> dict[str, int | float | None]:
    """Pooled figures; the standard deviation is the sample's (n - 1)."""
    if not values:
        return {"n": 0, "mean": None, "sd": None, "median": None, "min": None, "max": None}
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }
