"""What a comparison would cost: its runs, and hours from a measured or an assumed training step of each network."""

import math
import time

import torch
from monai.bundle import ConfigParser

from scripts.common.errors import InputError
from scripts.comparison.fit import fit
from scripts.comparison.plan import Plan, Run
from scripts.comparison.table import PAPER
from scripts.search.space import check_count


def print_estimate(
    plan: Plan, seconds_per_step: float | dict | None, assumed_scans: int, assumed_grid: list[int]
) -> None:
    """Print every network's runs, parameters beside the paper's, seconds of a training step, and hours; then the runs.

    A step is one batch of random numbers on the recipe's grid: forward, loss, backward, optimizer. It leaves out
    loading, what overlays add to a step, and evaluation, whose scans cost a third of a step or less.

    Args:
        plan: whose runs.
        seconds_per_step: of a device that is not at hand: a number, or one for each network by name; None measures.
        assumed_scans: of a cohort that is not at hand, whose grid is ``assumed_grid``; 0 reads the plan's.

    Raises:
        InputError: a number is out of range, or a network's seconds are missing.
    """
    check_count(0, assumed_scans=assumed_scans)
    total, grid = 0.0, {"spatial_size": [*assumed_grid], "spacing": [1.0] * 3} if assumed_scans else {}
    head = f"{'network':<24}{'parameters':>12}{'in the paper':>14}"
    print(f"{head}{'runs':>6}{'steps a run':>13}{'s a step':>10}{'hours':>9}")
    for name, entry in plan.networks.items():
        recipe = plan.recipe(Run(name, plan.folds[0], 0), cache="none", **grid)
        found, paper = fit(recipe), _paper_parameters(entry)
        if found.reason:
            print(f"{name:<24}{'-':>12}{paper:>14}  left out: {found.reason}")
            plan.left_out[name] = found.reason
            continue
        runs = len(plan.folds) * plan.restarts
        scans = assumed_scans - assumed_scans // 3 or len(recipe.get_parsed_content("cohort").training)
        steps = recipe.get_parsed_content("epochs") * math.ceil(scans / recipe.get_parsed_content("batch_size"))
        if not found.gradients:
            print(f"{name:<24}{found.parameters or '-':>12}{paper:>14}{runs:>6}{'-':>13}{'-':>10}{'unknown':>9}")
            continue
        seconds = _step(recipe) if seconds_per_step is None else _assumed(seconds_per_step, name)
        hours = runs * steps * seconds / 3600
        total += hours
        print(f"{name:<24}{found.parameters:>12,}{paper:>14}{runs:>6}{steps:>13,}{seconds:>10.3g}{hours:>9.2f}")
    device = "an assumed device" if seconds_per_step is not None else recipe.get_parsed_content("device")
    print(f"{total:.1f} hours of training on {device}, with one worker; evaluation and loading come on top\n")
    for run in plan.runs:
        print(run.name)


def _paper_parameters(entry: dict) -> str:
    paper = ConfigParser.load_config_file(PAPER).get(entry.get("paper"))
    return f"{paper['parameters']:,}" if paper else "-"


def _assumed(seconds: float | dict, name: str) -> float:
    value = seconds.get(name) if isinstance(seconds, dict) else seconds
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"seconds_per_step: {name} has {value!r}; expected a number above 0, or one for each network")
    return float(value)


def _step(recipe: ConfigParser) -> float:
    """Seconds of a training step, the second of two: the first one warms up."""
    get = recipe.get_parsed_content
    network, loss, device = get("network").train(), get("loss"), torch.device(get("device"))
    optimizer = torch.optim.AdamW(network.parameters())
    shape = (get("batch_size"), 1, *get("spatial_size"))
    image, label = torch.rand(shape, device=device), torch.zeros(shape, device=device)
    label[..., : shape[-1] // 2] = 1
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(
            device.type, get("autocast"), enabled=get("autocast") is not None and device.type == "cuda"
        ):
            prediction = get("train#inferer")(image, network)  # which autocasts on a CPU
        loss(prediction, label).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started
