"""Optuna draws a study but names no command and marks no pruned trial: this writes a search's results for people."""

import logging
import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
from optuna.visualization import matplotlib as pictures

from scripts.common.files import replace_file
from scripts.training.run_record import RECIPE

plt.switch_backend("Agg")  # no display is needed


def report(study: optuna.Study, output_dir: Path, metric: str) -> None:
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
    configs = f"['{os.path.relpath(RECIPE)}','{os.path.relpath(study.best_trial.user_attrs['overrides'])}']"
    folder = os.path.relpath(output_dir / "best")
    print(f"All trials and pictures: {output_dir}\nTo train with the best one:")
    print(f'python -m monai.bundle run training --config_file "{configs}" --output_dir {folder} --ckpt_dir {folder}')
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Attempting to set identical")  # limits, for a single trial
    needed = {"intermediate_values": 1, "optimization_history": 2, "slice": 2, "param_importances": 3}  # to compare
    for name in [name for name, least in needed.items() if len(complete) >= least]:
        axes = np.ravel(getattr(pictures, f"plot_{name}")(study))[0]
        if name == "intermediate_values":
            name = "learning_curves"
            for trial in study.get_trials(states=(optuna.trial.TrialState.PRUNED,)):
                axes.plot(trial.last_step, trial.value, "x", color="black")
            axes.set(title="x is pruned", xlabel="epoch", ylabel=f"{metric}, mean of the inner folds")
        with replace_file(output_dir / f"{name}.png", "wb") as file:
            axes.figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
        plt.close(axes.figure)
