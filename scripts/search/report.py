"""Optuna draws a study but names no command and marks no pruned trial: this writes a search's results for people."""

import logging
import os
import warnings
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.trial import TrialState
from optuna.visualization import matplotlib as pictures

from scripts.common.files import replace_file
from scripts.search.space import TRAIN


def report(study: optuna.Study, output_dir: Path, metric: str) -> None:
    """Write ``trials.csv`` and pictures to ``output_dir``; print the best trials and the command for the winner."""
    trials = study.trials_dataframe()
    with replace_file(output_dir / "trials.csv", unique=True) as file:
        trials.to_csv(file, index=False)
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        print("No trial has completed yet")
        return
    complete = trials[trials["state"] == "COMPLETE"]
    _draw(study, output_dir, metric, len(complete))
    best = complete.sort_values("value", ascending=study.direction.name == "MINIMIZE").head()
    shown = best[["number", "value", *(name for name in best if name.startswith("params_"))]]
    names = {"number": "trial", "value": metric}
    shown = shown.rename(columns=lambda name: names.get(name, name[7:]))
    print(shown.to_string(index=False, float_format="%.4g", formatters={metric: "{:.4f}".format}))
    configs = f"['{os.path.relpath(TRAIN)}','{os.path.relpath(study.best_trial.user_attrs['overrides'])}']"
    folder = os.path.relpath(output_dir / "best")
    print(f"All trials and pictures: {output_dir}\nTo train with the best one:")
    print(f'python -m monai.bundle run training --config_file "{configs}" --output_dir {folder} --ckpt_dir {folder}')


def _draw(study: optuna.Study, output_dir: Path, metric: str, n_complete: int) -> None:
    """Pictures of the learning curves, and of complete trials where there are some to compare."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Attempting to set identical")  # limits, for a single trial
    draw = {"learning_curves": pictures.plot_intermediate_values}
    if n_complete > 1:
        draw |= {"optimization_history": pictures.plot_optimization_history, "slice": pictures.plot_slice}
    if n_complete > 2:
        draw["param_importances"] = pictures.plot_param_importances
    for name, plot in draw.items():
        axes = np.ravel(plot(study))[0]
        if name == "learning_curves":
            for trial in study.get_trials(states=(TrialState.PRUNED,)):
                axes.plot(trial.last_step, trial.value, "x", color="black")
            axes.set(title="x is pruned", xlabel="epoch", ylabel=f"{metric}, mean of the inner folds")
        with replace_file(output_dir / f"{name}.png", "wb", unique=True) as file:
            axes.figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
        plt.close(axes.figure)
