"""Draw a comparison: DICE by network, parameters and lesion size, volumes, and the ensembles' reliability."""

import json
from collections.abc import Iterator

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from scripts.common.files import replace_file
from scripts.comparison.plan import Plan
from scripts.comparison.table import PAPER

LEAST = 0.01  # mL: where a volume of 0 is drawn
FEWEST = 20  # voxels in a bin that is drawn


def draw(plan: Plan, runs: pandas.DataFrame, subjects: pandas.DataFrame) -> None:
    """Write the pictures into the plan's folder, from the tables of runs and of subjects."""
    one_by_one = subjects[subjects["restart"].notna()]
    values = [name for name in ("dice", "true_volume", "predicted_volume") if name in subjects]
    means = subjects.groupby(["row", "subject"], sort=False)[values].mean().reset_index()
    single = one_by_one.groupby(["row", "subject"], sort=False)[values].mean().reset_index()
    figures = {"dice": _distribution(means), "parameters": _by_parameters(runs[runs["state"] == "COMPLETE"])}
    if "true_volume" in subjects:
        figures |= {"lesion_size": _by_size(single), "volumes": _volumes(single)}
    together = list(_together(plan))
    if together:
        figures["reliability"] = _reliability(pandas.concat(together), subjects)
    for name, figure in figures.items():
        with replace_file(plan.folder / f"{name}.png", "wb") as file:
            figure.savefig(file, dpi=120, bbox_inches="tight", format="png")


def _axes(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = np.ravel(figure.subplots(rows, columns))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _colours(names: list[str]) -> dict[str, tuple]:
    return dict(zip(names, matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors * 9, strict=False))


def _distribution(means: pandas.DataFrame) -> Figure:
    """Draw each subject's DICE, mean over restarts, by row; the best median on top."""
    names = means.groupby("row")["dice"].median().sort_values().index.tolist()
    figure, (axis,) = _axes(7, 1 + 0.45 * len(names))
    data = [means.loc[means["row"] == name, "dice"].dropna() for name in names]
    axis.boxplot(data, orientation="horizontal", widths=0.6, showfliers=False, medianprops={"color": "black"})
    shift = np.random.default_rng(0)
    for i, values in enumerate(data, 1):
        axis.plot(values, i + shift.uniform(-0.2, 0.2, len(values)), "o", markersize=3, alpha=0.5)
    axis.set(yticks=range(1, len(names) + 1), yticklabels=names, xlabel="test DICE of a subject (mean over restarts)")
    return figure


def _by_parameters(runs: pandas.DataFrame) -> Figure:
    """Draw mean and standard deviation over runs, beside the paper's, whose DICE is probably of both classes."""
    figure, (axis,) = _axes(7, 4.5)
    single = runs[runs["restart"].notna() & (runs["parameters"] > 0)]
    ours = single.groupby("row").agg(
        parameters=("parameters", "max"), mean=("dice_with_background", "mean"), sd=("dice_with_background", "std")
    )
    paper = pandas.DataFrame(json.loads(PAPER.read_text())).T
    theirs = pandas.DataFrame(paper["dice"].tolist(), index=paper.index, columns=["mean", "sd"])
    theirs = theirs.join(paper["parameters"])
    style = {"fmt": "o", "capsize": 2, "linewidth": 1}
    axis.errorbar(ours["parameters"], ours["mean"], ours["sd"].fillna(0), **style, label="here", zorder=3)
    axis.errorbar(
        theirs["parameters"], theirs["mean"], theirs["sd"], **style, mfc="white", color="grey", label="paper, ARC"
    )
    for points, colour in ((ours, "C0"), (theirs, "grey")):
        for i, (name, point) in enumerate(points.sort_values("parameters").iterrows()):
            where = {"xytext": (4, (5, -11, 16)[i % 3]), "textcoords": "offset points", "fontsize": 7, "color": colour}
            axis.annotate(name, (point["parameters"], point["mean"]), **where)
    axis.set(xscale="log", xlabel="parameters", ylabel="DICE with background, mean and sd of runs")
    axis.legend()
    return figure


def _by_size(single: pandas.DataFrame) -> Figure:
    """Draw DICE of each subject, and its median in the quarters of lesion volume."""
    figure, (axis,) = _axes(7, 4.5)
    colours = _colours(single["row"].unique().tolist())
    for name, part in single.groupby("row", sort=False):
        axis.plot(part["true_volume"].clip(LEAST), part["dice"], ".", markersize=4, alpha=0.35, color=colours[name])
        quarters = part.groupby(pandas.qcut(part["true_volume"], 4, duplicates="drop"), observed=True)
        middle = quarters[["true_volume", "dice"]].median()
        axis.plot(middle["true_volume"], middle["dice"], "o-", markersize=5, color=colours[name], label=name)
    axis.set(xscale="log", xlabel="true lesion volume, mL", ylabel="test DICE; medians of the quarters")
    axis.legend(fontsize=8)
    return figure


def _volumes(single: pandas.DataFrame) -> Figure:
    """Draw predicted against true volume, a panel for each network."""
    names = single["row"].unique().tolist()
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _axes(2.8 * columns, 2.9 * rows, columns, rows)
    volumes = single[["true_volume", "predicted_volume"]].clip(LEAST)
    limits = [volumes.to_numpy().min() / 1.5, volumes.to_numpy().max() * 1.5]
    for axis, name in zip(axes, names, strict=False):
        part = volumes[single["row"] == name]
        axis.plot(limits, limits, color="grey", linewidth=1)
        axis.plot(part["true_volume"], part["predicted_volume"], ".", markersize=5, alpha=0.6)
        axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect="equal", title=name)
        axis.title.set_fontsize(9)
    for axis in axes[len(names) :]:
        axis.remove()
    figure.supxlabel(f"true volume, mL (a predicted 0 is drawn as {LEAST})", fontsize=9)
    figure.supylabel("predicted, mL, mean over restarts", fontsize=9)
    return figure


def _together(plan: Plan) -> Iterator[pandas.DataFrame]:
    """Read what ``Reliability`` wrote of each ensemble."""
    for run in [run for run in plan.runs if run.restart is None]:
        folder = plan.folder / run.name
        if (folder / "result.json").is_file():
            name = plan.networks[run.network].get("paper", run.network)
            agreement = pandas.read_csv(folder / "agreement.csv", dtype={"subject": str}).assign(of="scan")
            agreement["image"] = agreement.get("image")  # earlier evaluations have none
            counted = pandas.read_csv(folder / "reliability.csv")
            yield pandas.concat([counted, agreement]).assign(name=name, row=f"{name}, {run.members} together")


def _reliability(together: pandas.DataFrame, subjects: pandas.DataFrame) -> Figure:
    """Draw calibration of the mean probability, error by disagreement, and DICE by the members' agreement on a scan."""
    figure, (left, middle, right) = _axes(12, 4, 3)
    colours = _colours(together["name"].unique().tolist())
    for name, part in together.groupby("name", sort=False):
        for axis, of, share in ((left, "probability", "lesion"), (middle, "uncertainty", "wrong")):
            bins = part[part["of"] == of]
            sums = bins[["mean", share]].mul(bins["voxels"], axis=0).assign(low=bins["low"], n=bins["voxels"])
            sums = sums.groupby("low").sum()
            sums = sums[sums["n"] >= FEWEST]
            axis.plot(sums["mean"] / sums["n"], sums[share] / sums["n"], "o-", markersize=4, color=colours[name])
        scans = part[part["of"] == "scan"].merge(subjects[["row", "image", "dice"]], on=["row", "image"])
        scans = scans.dropna(subset=["quality", "dice"])
        varies = scans[["quality", "dice"]].nunique().min() > 1
        rho = f" (rho {spearmanr(scans['quality'], scans['dice']).statistic:.2f})" if varies else ""
        label = f"{name}{rho}"
        right.plot(scans["quality"], scans["dice"], ".", alpha=0.6, color=colours[name], label=label)
    for axis in (left, right):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
    left.set(xlabel="mean probability of lesion", ylabel="share of voxels that are lesion", title="Calibration")
    middle.set(xlabel="disagreement (sd of probabilities)", ylabel="share of voxels that are wrong", title="Voxels")
    right.set(xlabel="mean DICE of pairs of restarts", ylabel="DICE of their mean with the truth", title="Scans")
    right.legend(fontsize=8)
    return figure
