"""Make tables of ratios; ``python -m scripts.benchmarking.report`` prints those of the docs."""

import json
import math
import statistics
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

RECORD = Path(__file__).resolve().parents[2] / "docs" / "benchmark.json"
BUNDLE, REFERENCE = "this bundle", "dilated, eager torch"
KINDS = {  # what a case's mode and key are called, and its value
    ("inference", "seconds"): ("Inference, seconds", statistics.median),
    ("inference", "peak_bytes"): ("Inference, peak MB", lambda peaks: max(peaks) / 1e6),
    ("training", "seconds"): ("A training step, seconds", statistics.median),
    ("training", "peak_bytes"): ("A training step, peak MB", lambda peaks: max(peaks) / 1e6),
    ("memory", "bytes_per_voxel"): ("Tensors at the peak of a training step, bytes a voxel", float),
}


def tables(runs: list[dict]) -> str:
    """Markdown: for each machine a table of each kind of work.

    A cell has a value for each width: this bundle's own, and how many times that the others take in the same run; in
    brackets their own where it was not measured there. Of a case that several runs have, the last counts.
    """
    lines = []
    for (device, threads, precision), group in groupby(runs, lambda r: (r["device"], r["threads"], r["precision"])):
        runs_here = list(group)
        lines += [f"**{device}, {threads} threads, computing in {precision}**", ""]
        for run in runs_here:
            versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in run["versions"].items())
            about = f"{run['date']}, {' '.join(run['features'])}, {versions}"
            why = {f"{case['implementation']}: {case['skipped']}" for case in run["cases"] if "skipped" in case}
            lines += [f"- `{run['command']}`: {about}", *(f"- {line}" for line in sorted(why))]
        for kind, (title, value) in KINDS.items():
            lines += _table(runs_here, *kind, title, value)
    return "\n".join(lines).strip() + "\n"


def _table(runs: list[dict], mode: str, key: str, title: str, value_of: Callable) -> list[str]:
    cells = {}
    widths = sorted({c["channels"] for run in runs for c in run["cases"] if c["channels"]}) or [None]
    for run in runs:
        cases = [case for case in run["cases"] if case["mode"] == mode and case.get(key)]
        values = {(c["implementation"], tuple(c["grid"] or ()), c["channels"]): value_of(c[key]) for c in cases}
        for (name, grid, channels), value in values.items():
            for width in [channels] if channels else widths:
                ours = values.get((BUNDLE, grid, width))
                shown = value / ours if ours and name != BUNDLE else value
                text = f"{shown:,.0f}" if shown > 1000 else f"{shown:.3g}"
                cells.setdefault(name, {})[grid, width] = text if ours else f"({text})"
    grids = sorted({grid for row in cells.values() for grid, _ in row}, key=math.prod)
    head = " | ".join("x".join(map(str, grid)) or "any grid" for grid in grids)
    lines = ["", f"| {title}; {'/'.join(map(str, widths))} channels | {head} |", "|---" * (1 + len(grids)) + "|"]
    for name in sorted(cells, key=lambda name: name != BUNDLE):
        row = ["/".join(cells[name].get((grid, width), "-") for width in widths) for grid in grids]
        lines.append(f"| {name} | {' | '.join(row)} |".replace("-/-/-", ""))
    return lines if cells else []


if __name__ == "__main__":
    print(tables(json.loads(RECORD.read_text())), end="")
