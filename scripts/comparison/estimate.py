"""Print what a comparison would cost: its runs, and hours from a measured or an assumed step of each network."""

import math
import time

import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines import default_prepare_batch

from scripts.common.errors import InputError
from scripts.comparison.fit import takes_gradients, trains_by_steps
from scripts.comparison.plan import Plan, Run
from scripts.comparison.table import PAPER
from scripts.search.space import check_count

ROW = "{:<24}{:>12}{:>14}{:>6}{:>13}{:>10}{:>9}"
TWO_STEPS = {
    "cache": "none",
    "train#trainer#train_handlers": [],
    "train#trainer#max_epochs": 1,
    "train#trainer#epoch_length": 2,
}
RANDOM = "$[dict.fromkeys(('image', 'label'), (torch.rand(@batch_size, 1, *@spatial_size) > 0.5).float())] * 2"


def print_estimate(
    plan: Plan, seconds_per_step: float | dict | None, assumed_scans: int, assumed_grid: list[int]
) -> None:
    """Print every network's runs, parameters beside the paper's, seconds of a training step, and hours; then the runs.

    The step is the second of two by the recipe's own trainer without its handlers, so it leaves out what overlays add
    by a handler. Loading is left out, and evaluation, whose scans cost a third of a step or less.

    Args:
        plan: whose runs.
        seconds_per_step: of a device that is not at hand: a number, or one for each network by name; None measures.
        assumed_scans: of a cohort that is not at hand, for which a step takes random numbers; 0 reads the plan's.
        assumed_grid: the voxels along each axis of its scans.

    Raises:
        InputError: a number is out of range, or a network's seconds are missing.
    """
    check_count(0, assumed_scans=assumed_scans)
    grid = {"spatial_size": [*assumed_grid], "spacing": [1.0] * 3, "train#dataloader": RANDOM} if assumed_scans else {}
    plan.leave_out(**grid)
    print(ROW.format("network", "parameters", "in the paper", "runs", "steps a run", "s a step", "hours"))
    runs = len(plan.folds) * plan.restarts
    total = 0.0
    for name in [name for name in plan.networks if name not in plan.left_out]:
        recipe = plan.recipe(Run(name, plan.folds[0], 0), **TWO_STEPS, **grid)
        get = recipe.get_parsed_content
        row = [name, *_parameters(recipe, plan.networks[name]), runs]
        if not takes_gradients(recipe):
            print(ROW.format(*row, "-", "-", "unknown"))
            continue
        scans = assumed_scans - assumed_scans // 3 or len(get("cohort").training)
        steps = get("epochs") * math.ceil(scans / get("batch_size"))
        seconds = _measured(recipe) if seconds_per_step is None else _assumed(seconds_per_step, name)
        hours = runs * steps * seconds / 3600
        total += hours
        print(ROW.format(*row, f"{steps:,}", f"{seconds:.3g}", f"{hours:.2f}"))
    device = "an assumed device" if seconds_per_step is not None else get("device")
    print(f"{total:.1f} hours of training on {device}, with one worker; evaluation and loading come on top\n")
    print("\n".join(run.name for run in plan.runs))


def _parameters(recipe: ConfigParser, entry: dict) -> list[str]:
    """Return the network's number of parameters and the paper's."""
    ours = recipe.get_parsed_content("network_def").parameters() if trains_by_steps(recipe) else []
    theirs = ConfigParser.load_config_file(PAPER).get(entry.get("paper"), {}).get("parameters")
    return [f"{number:,}" if number else "-" for number in (sum(p.numel() for p in ours), theirs)]


def _assumed(seconds: float | dict, name: str) -> float:
    value = seconds.get(name) if isinstance(seconds, dict) else seconds
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise InputError(f"seconds_per_step: {name} has {value!r}; expected a number above 0, or one for each network")
    return float(value)


def _measured(recipe: ConfigParser) -> float:
    """Return the seconds of the second of two training steps; the first one warms up."""
    trainer = recipe.get_parsed_content("train#trainer")
    trainer.prepare_batch = default_prepare_batch  # an overlay's own needs its handler
    times = []

    def note() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    trainer.add_event_handler(Events.ITERATION_STARTED | Events.ITERATION_COMPLETED, note)
    trainer.run()
    return times[-1] - times[-2]
