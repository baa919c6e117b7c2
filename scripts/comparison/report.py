"""Write what a comparison has found so far: tables of runs and subjects, tests and pictures."""

from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas

from scripts.common.files import replace_file
from scripts.common.json_file import read_json
from scripts.comparison.pictures import draw
from scripts.comparison.plan import Plan, Run
from scripts.comparison.statistics import METRICS, against
from scripts.comparison.table import as_html, as_markdown, as_tex, table


def report(plan: Plan, study: optuna.Study) -> None:
    """Write ``runs.csv``, ``subjects.csv``, ``statistics.csv``, the table and pictures; print the table."""
    states = {}
    for trial in study.get_trials(deepcopy=False):
        if "network" in trial.user_attrs and trial.state != optuna.trial.TrialState.PRUNED:
            key = tuple(trial.user_attrs[name] for name in ("network", "fold", "restart", "members"))
            states[key] = {"state": trial.state.name, "reason": trial.user_attrs.get("reason", "")}
    none = {"state": "NOT BEGUN", "reason": ""}
    found = {run: states.get((run.network, run.fold, run.restart, run.members), none) for run in plan.runs}
    done = [run for run in plan.runs if (plan.folder / run.name / "result.json").is_file()]
    scans = {run: list(_subjects(plan, run)) for run in done}
    runs = pandas.DataFrame([_run(plan, run, scans.get(run), found[run]) for run in plan.runs])
    _csv(runs, plan.folder / "runs.csv")
    if done:
        subjects = pandas.DataFrame([row for rows in scans.values() for row in rows])
        tests = against(subjects, row_name(plan, Run(plan.reference, 0, 0)))
        for content, name in ((subjects, "subjects.csv"), (tests, "statistics.csv")):
            _csv(content, plan.folder / name)
        rows, notes = table(runs, tests, plan)
        for suffix, write in (("md", as_markdown), ("tex", as_tex), ("html", as_html)):
            with replace_file(plan.folder / f"table.{suffix}") as file:
                file.write(write(rows, notes))
        draw(plan, runs, subjects)
        print(as_markdown(rows, notes))
    for run in [run for run in plan.runs if run not in done]:
        print(f"missing: {run.name} ({' '.join(found[run].values()).strip().lower()})")
    print(f"{len(done)} of {len(plan.runs)} runs are done; table, statistics and pictures: {plan.folder}")


def row_name(plan: Plan, run: Run) -> str:
    """Return the name of a run's row of the table."""
    name = plan.networks[run.network].get("paper", run.network)
    return name if run.restart is not None else f"{name}, {run.members} together"


def _subjects(plan: Plan, run: Run) -> Iterator[dict]:
    """Yield a row for each scan that a run was tested on."""
    who = _who(plan, run)
    for scan in pandas.read_csv(plan.folder / run.name / "metrics.csv", dtype={"subject": str}).to_dict("records"):
        yield {**who, **scan}


def _run(plan: Plan, run: Run, scans: list[dict] | None, state: dict) -> dict:
    """Return a run's mean over its test scans, and its cost."""
    if scans is None:
        return {**_who(plan, run), **state}
    result = read_json(plan.folder / run.name / "result.json", "delete it to do the run again")
    table = pandas.DataFrame(scans)
    means = {metric: table[metric].mean() for metric in METRICS if metric in table}
    costs = {key: result.get(key) for key in ("parameters", "train_seconds", "scan_seconds")}
    return {**_who(plan, run), "state": "COMPLETE", "reason": "", "scans": len(table), **means, **costs}


def _who(plan: Plan, run: Run) -> dict:
    return {"row": row_name(plan, run), "network": run.network, "fold": run.fold, "restart": run.restart}


def _csv(content: pandas.DataFrame, path: Path) -> None:
    with replace_file(path) as file:
        whole = {name: "Int64" for name in ("restart", "scans", "parameters") if name in content}
        content.astype(whole).to_csv(file, index=False, lineterminator="\n", float_format="%.8g")
