"""Make the table of a comparison beside the paper's own, in Markdown, LaTeX and HTML."""

import json
import math
from html import escape
from pathlib import Path

import pandas

from scripts.comparison.plan import Plan

PAPER = Path(__file__).with_name("paper.json")
COLUMNS = {"dice": "DICE", "dice_with_background": "DICE with background", "avd": "AVD", "mcc": "MCC"}
SIMULATED = "This cohort is simulated: the table shows that the protocol works, not how networks do on patients."


def table(runs: pandas.DataFrame, tests: pandas.DataFrame, plan: Plan) -> tuple[pandas.DataFrame, list[str]]:
    """Return rows by falling DICE, and the notes below them.

    Args:
        runs: of ``runs.csv``.
        tests: of ``statistics.csv``; may be empty.
        plan: of the comparison.
    """
    paper = json.loads(PAPER.read_text())
    done = runs[runs["state"] == "COMPLETE"]
    reference = plan.networks[plan.reference].get("paper", plan.reference)
    dice = tests[tests["metric"] == "dice"].set_index("row") if len(tests) else pandas.DataFrame()
    rows = []
    order = done.groupby("row", sort=False)["dice"].mean().sort_values(ascending=False, kind="stable")
    for name in [*order.index, *(name for name in paper if name not in order.index)]:
        ours = done[done["row"] == name]
        row = {"network": name, "parameters": f"{ours['parameters'].max():,.0f}" if len(ours) else "-"}
        row |= {title: _spread(ours[key]) for key, title in COLUMNS.items() if key in done}
        p = f"{dice.loc[name, 'p_holm']:.2g}" if name in dice.index else "-"
        row |= {"p (Holm)": "reference" if name == reference else p}
        row |= {"training, s": _seconds(ours["train_seconds"]), "a scan, s": _seconds(ours["scan_seconds"])}
        row |= {"runs": f"{len(ours)} of {(runs['row'] == name).sum()}" if len(ours) else "-"}
        theirs = paper.get(name, {})
        row |= {"paper: parameters": f"{theirs['parameters']:,}" if theirs else "-"}
        row |= {f"paper: {COLUMNS[key]}": _printed(theirs.get(key)) for key in ("dice", "avd", "mcc")}
        rows.append(row)
    return pandas.DataFrame(rows), _notes(plan, reference, dice)


def _spread(values: pandas.Series) -> str:
    """Return mean and standard deviation (n - 1)."""
    values = values.dropna()
    if values.empty:
        return "-"
    return _printed((values.mean(), values.std())) if len(values) > 1 else f"{values.mean():.3f}"


def _printed(pair: tuple[float, float] | None) -> str:
    return f"{pair[0]:.3f} ({pair[1]:.3f})" if pair else "-"


def _seconds(values: pandas.Series) -> str:
    mean = values.astype(float).mean()
    return "-" if math.isnan(mean) else f"{mean:.3g}" if mean < 100 else f"{mean:,.0f}"


def _notes(plan: Plan, reference: str, dice: pandas.DataFrame) -> list[str]:
    cohort = plan.cohort[0]
    epochs = plan.common["epochs"]
    size = "x".join(map(str, cohort.spatial_size))
    notes = [
        f"{cohort.name}, grid {size}, {epochs} epochs; mean (sd) over restarts and folds of a run's mean over its test "
        f"scans. Folds {', '.join(map(str, plan.folds))}, {plan.restarts} restarts.",
        "The paper's columns are its Table 1 (arXiv 2503.05531, ARC, 256x256x256); its DICE is probably averaged over "
        "background and lesion: compare it with DICE with background.",
    ]
    if len(dice):
        pairs = sorted({f"{int(n) + int(z)} subjects" for n, z in zip(dice["n"], dice["zeros"], strict=True)})
        zeros = int(dice["zeros"].max())
        ties = int(dice["ties"].max())
        exact = "exact" if dice["exact"].all() else "the normal approximation where there are ties or 50 pairs and more"
        notes.append(
            f"p: DICE of a subject, mean over restarts, against {reference}: paired Wilcoxon signed-rank test, "
            f"two-sided ({exact}), {', '.join(pairs)}, at most {zeros} equal pairs (left out) and {ties} ties; "
            f"Holm's correction over {len(dice)} rows. Other metrics: statistics.csv."
        )
    for name, entry in plan.networks.items():
        if entry.get("overrides", {}).get("epochs", epochs) != epochs:
            notes.append(f"{name} has {entry['overrides']['epochs']} instead of {epochs} epochs.")
    notes += [f"{name} is left out: {reason}." for name, reason in plan.left_out.items()]
    return [SIMULATED, *notes] if cohort.simulated else notes


def as_markdown(rows: pandas.DataFrame, notes: list[str]) -> str:
    """Return the table, then a paragraph for each note."""
    lines = [[*rows.columns], ["---"] * len(rows.columns), *rows.values.tolist()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{note}" for note in notes)]) + "\n"


def as_tex(rows: pandas.DataFrame, notes: list[str]) -> str:
    """Return a ``tabular`` for the package booktabs; the notes are comments."""
    comments = "".join(f"% {note}\n" for note in notes)
    return comments + rows.to_latex(index=False, escape=True, column_format="l" + "r" * (len(rows.columns) - 1))


def as_html(rows: pandas.DataFrame, notes: list[str]) -> str:
    """Return a page that needs no other file."""
    style = (
        "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:.3em .7em;text-align:right}"
    )
    style += "td:first-child,th:first-child{text-align:left}tr{border-bottom:1px solid #ccc}"
    paragraphs = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    head = f"<!doctype html><meta charset='utf-8'><title>Networks compared</title><style>{style}</style>\n"
    return f"{head}{rows.to_html(index=False, border=0)}\n{paragraphs}"
