"""Write a search's results: the table of its trials, pictures, and the command that trains with the best one."""

import logging
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization import matplotlib as pictures

from scripts.common.files import replace_file
from scripts.training.run_record import RECIPE

plt.switch_backend("Agg")  # no display is needed


def report(study: optuna.Study, output_dir: Path, metric: str, overlays: Sequence[str] = ()) -> None:
    """Write ``trials.csv`` and pictures to ``output_dir``; print the best trials and the command for the winner."""
    trials = study.trials_dataframe()
    with replace_file(output_dir / "trials.csv") as file:
        trials.to_csv(file, index=False)
    complete = trials[trials["state"] == "COMPLETE"] if len(trials) else trials
    if complete.empty:
        print("No trial has completed yet")
        return
    best = complete.sort_values("value", ascending=study.direction.name == "MINIMIZE").head()
    best = best.filter(regex="^(number|value|params_.*)$").rename(columns={"number": "trial", "value": metric})
    best.columns = best.columns.str.removeprefix("params_")
    print(best.to_string(index=False, float_format="%.4g", formatters={metric: "{:.4f}".format}))
    files = [RECIPE, *overlays, study.best_trial.user_attrs["overrides"]]
    configs = f"[{','.join(repr(os.path.relpath(path)) for path in files)}]"
    folder = os.path.relpath(output_dir / "best")
    print(f"All trials and pictures: {output_dir}\nTo train with the best one:")
    print(f'python -m monai.bundle run training --config_file "{configs}" --output_dir {folder} --ckpt_dir {folder}')
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Attempting to set identical")  # limits, for a single trial
    needed = {"intermediate_values": 1, "optimization_history": 2, "slice": 2, "param_importances": 3}  # to compare
    drawn = {name: getattr(pictures, f"plot_{name}") for name, least in needed.items() if len(complete) >= least}
    if len(complete) >= 3 and len(pair := two_most_important(study)) == 2:
        grid = isinstance(study.sampler, optuna.samplers.GridSampler)
        drawn["heatmap" if grid else "contour"] = partial(plot_heatmap if grid else pictures.plot_contour, params=pair)
    for name, draw in drawn.items():
        axes = np.ravel(draw(study))[0]
        if name == "intermediate_values":
            name = "learning_curves"
            for trial in study.get_trials(states=(optuna.trial.TrialState.PRUNED,)):
                axes.plot(trial.last_step, trial.value, "x", color="black")
            axes.set(title="x is pruned", xlabel="epoch", ylabel=f"{metric}, mean of the inner folds")
        if name in ("contour", "heatmap"):
            axes.set_title(f"{metric} by the two most important parameters", fontsize="medium")
        with replace_file(output_dir / f"{name}.png", "wb") as file:
            axes.figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
        plt.close(axes.figure)


def two_most_important(study: optuna.Study) -> list[str]:
    """Return the two parameters that complete trials depend on most (fANOVA, Hutter et al., 2014), [] if on none."""
    trials = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if len({trial.value for trial in trials}) < 2:
        return []
    return list(optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))[:2]


def plot_heatmap(study: optuna.Study, params: list[str]) -> plt.Axes:
    """Draw a grid's complete trials by two parameters, as colours and numbers; means over the other parameters."""
    trials = study.trials_dataframe().query("state == 'COMPLETE'")
    cells = trials.pivot_table("value", *(f"params_{name}" for name in params))
    axes = plt.subplots(figsize=(2 + len(cells.columns), 2 + 0.7 * len(cells)))[1]
    axes.figure.colorbar(axes.imshow(cells, aspect="auto"), label="mean value of the trials")
    for (row, column), value in np.ndenumerate(cells):
        middle = axes.get_images()[0].norm(value) < 0.5
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="white" if middle else "black")
    axes.set_yticks(range(len(cells)), cells.index)
    axes.set_xticks(range(len(cells.columns)), cells.columns)
    axes.set(ylabel=params[0], xlabel=params[1])
    axes.grid(False)  # of Optuna's style
    return axes
