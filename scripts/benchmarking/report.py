"""No library knows what our cases mean: this makes tables with ratios, the floor and memory a voxel, and a plot."""

import math
import statistics
from itertools import groupby
from pathlib import Path

BUNDLE, REFERENCE = "this bundle", "dilated, eager torch"
MEMORIES = (8, 12, 24, 80)  # GB, of common GPUs


def tables(results: dict) -> str:
    """All cases in Markdown, a table for each kind of work and grid, and one of the memory that training takes."""
    cases = [case for case in results["cases"] if case["seconds"] or "skipped" in case or "bytes_per_voxel" in case]
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in results["versions"].items())
    lines = [
        f"{results['date']}, {results['device']}, {results['threads']} threads, {' '.join(results['features'])}; "
        f"this bundle computes in {results['precision']}. Python {results['python']}, {versions}.",
        "",
        f"`{results['command']}`",
    ]
    if "fp32" in results.get("rates", {}):
        rates = results["rates"]
        lines += [
            "",
            f"Measured rates: matrix products {rates['fp32'] / 1e9:.0f} (fp32) and {rates['bf16'] / 1e9:.0f} (bf16) "
            f"GFLOP/s, copying {rates['bytes'] / 1e9:.1f} GB/s.",
        ]
    order = sorted((case for case in cases if case["grid"]), key=lambda case: (case["mode"], math.prod(case["grid"])))
    for (mode, grid), group in groupby(order, lambda case: (case["mode"], case["grid"])):
        what = "inference" if mode == "inference" else "a training step"
        lines += ["", f"**{what}, {'x'.join(map(str, grid))}**", "", *_table(list(group), results)]
    lines += _memory(cases)
    return "\n".join(lines) + "\n"


def _table(group: list[dict], results: dict) -> list[str]:
    ours = {case["channels"]: case for case in group if case["implementation"] == BUNDLE and case["seconds"]}
    lines = [
        "| network | implementation | seconds, median (min to max) | times this bundle's | peak MB "
        "| largest difference, voxels of another class |",
        "|---|---|---|---|---|---|",
    ]
    for case in sorted(group, key=lambda case: case["channels"] or 99):
        network = f"MeshNet-{case['channels']}" if case["channels"] else f"{case.get('parameters', 0):,} parameters"
        if "skipped" in case:
            lines.append(f"| {network} | {case['implementation']} | {case['skipped']} | | | |")
            continue
        seconds = statistics.median(case["seconds"])
        against = [ours[case["channels"]]] if case["channels"] in ours else [] if case["channels"] else ours.values()
        ratios = [seconds / statistics.median(other["seconds"]) for other in against]
        shown = " / ".join(f"{ratio:.2f}" for ratio in ratios)
        if case["implementation"] == BUNDLE and case["mode"] == "inference" and "fp32" in results.get("rates", {}):
            shown = f"{seconds / floor_seconds(case, results):.1f} x floor"
        differs = f"{case['max_difference']:.1g}, {case['different_voxels']:.4%}" if "max_difference" in case else ""
        lines.append(
            f"| {network} | {case['implementation']} | {seconds:.3g} ({min(case['seconds']):.3g} to "
            f"{max(case['seconds']):.3g}) | {shown} | {max(case['peak_bytes']) / 1e6:,.0f} | {differs} |"
        )
    if any(case["channels"] is None for case in group) and ours:
        widths = " / ".join(f"MeshNet-{channels}" for channels in ours)
        lines += ["", f"Networks of another kind are compared with {widths}."]
    return lines


def floor_seconds(case: dict, results: dict) -> float:
    """The least time for MeshNet's inference at the machine's rates: the larger of arithmetic and memory traffic.

    Counted are a multiplication and an addition for each weight and voxel, and each activation written and read once.
    """
    voxels, channels, rates = math.prod(case["grid"]), case["channels"], results["rates"]
    operations = 2 * voxels * (27 * channels + 8 * 27 * channels**2 + 2 * channels)
    in_half = results["precision"] != "fp32"
    traffic = voxels * 2 * 9 * channels * (2 if in_half else 4)
    return max(operations / rates["bf16" if in_half else "fp32"], traffic / rates["bytes"])


def _memory(cases: list[dict]) -> list[str]:
    rows = [case for case in cases if "bytes_per_voxel" in case]
    if not rows:
        return []
    lines = []
    for case in sorted(rows, key=lambda case: case["channels"]):
        need = case["bytes_per_voxel"]
        sides = [16 * int((memory * 1e9 / need) ** (1 / 3) // 16) for memory in MEMORIES]
        grids = " | ".join(f"{side}³" for side in sides)
        lines.append(f"| MeshNet-{case['channels']} | {case['implementation']} | {need:,.0f} | {grids} |")
    head = " | ".join(f"{memory} GB" for memory in MEMORIES)
    title = (
        "**Tensors at the peak of a training step, and the largest grid (a multiple of 16) that they leave room for**"
    )
    columns = f"| network | implementation | bytes a voxel | {head} |"
    return ["", title, "", columns, "|---|---|---|---|---|---|---|", *lines]


def draw_scaling(results: dict, path: Path) -> None:
    """Plot the seconds of inference over voxels for each width, and save it to ``path``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    chosen = [case for case in results["cases"] if case["mode"] == "inference" and case["seconds"] and case["channels"]]
    for i, channels in enumerate(sorted({case["channels"] for case in chosen})):
        for name, style in ((REFERENCE, "o--"), (BUNDLE, "o-")):
            points = sorted(
                (math.prod(case["grid"]), statistics.median(case["seconds"]))
                for case in chosen
                if case["channels"] == channels and case["implementation"] == name
            )
            if points:
                axes.loglog(*zip(*points, strict=True), style, color=f"C{i}", label=f"MeshNet-{channels}, {name}")
    sizes = sorted({math.prod(case["grid"]) for case in chosen})
    axes.set_xticks(sizes, [f"{round(size ** (1 / 3))}³" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="voxels", ylabel="seconds", title=f"Inference, {results['device']}, {results['threads']} threads")
    axes.grid(alpha=0.3)
    if chosen:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
