"""Optuna draws a study but marks no pruned trial and names no command: this writes a search's results for people."""

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

TRAIN = Path(__file__).resolve().parents[2] / "configs" / "train.json"


def report(study: optuna.Study, output_dir: Path, metric: str) -> None:
    """Write ``trials.csv`` and pictures to ``output_dir``; print the best trials and the command for the winner."""
    with replace_file(output_dir / "trials.csv", unique=True) as file:
        study.trials_dataframe().to_csv(file, index=False)
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    if not complete:
        print("No trial has completed yet")
        return
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Attempting to set identical")  # limits, for a single trial
    _draw_learning_curves(study, output_dir / "learning_curves.png", metric)
    draw = {}  # Optuna's pictures are of complete trials, and compare them
    if len(complete) > 1:
        draw = {"optimization_history": pictures.plot_optimization_history, "slice": pictures.plot_slice}
    if len(complete) > 2:
        draw["param_importances"] = pictures.plot_param_importances
    for name, plot in draw.items():
        axes = np.ravel(plot(study))
        _save(axes[0].figure, output_dir / f"{name}.png")
    best = sorted(complete, key=lambda trial: trial.value, reverse=study.direction.name == "MAXIMIZE")
    names = list(best[0].params)
    print(f"{'trial':>6}{metric:>16}" + "".join(f"{name:>20}" for name in names))
    for trial in best[:5]:
        cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in trial.params.values())
        print(f"{trial.number:6}{trial.value:16.4f}" + "".join(f"{cell:>20}" for cell in cells))
    configs = f"['{os.path.relpath(TRAIN)}','{os.path.relpath(best[0].user_attrs['overrides'])}']"
    folder = os.path.relpath(output_dir / "best")
    print(f"All trials and pictures: {output_dir}\nTo train with the best one:")
    print(f'python -m monai.bundle run training --config_file "{configs}" --output_dir {folder} --ckpt_dir {folder}')


def _draw_learning_curves(study: optuna.Study, path: Path, metric: str) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    styles = {TrialState.COMPLETE: ("C0", "-", 0.6), TrialState.PRUNED: ("0.5", "--", 0.8)}
    for trial in study.trials:
        if trial.state in styles and trial.intermediate_values:
            epochs, values = zip(*sorted(trial.intermediate_values.items()), strict=True)
            color, line, alpha = styles[trial.state]
            axes.plot(epochs, values, color=color, linestyle=line, alpha=alpha)
            if trial.state == TrialState.PRUNED:
                axes.plot(epochs[-1], values[-1], "x", color="C3")
    best = study.best_trial
    epochs, values = zip(*sorted(best.intermediate_values.items()), strict=True)
    axes.plot(epochs, values, color="C1", linewidth=2.5, label=f"best: trial {best.number}")
    axes.plot([], [], color="C0", label="complete")
    axes.plot([], [], color="0.5", linestyle="--", marker="x", markeredgecolor="C3", label="pruned")
    axes.set(xlabel="epoch", ylabel=f"{metric}, mean of the inner folds", title=f"Study {study.study_name}")
    axes.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    with replace_file(path, "wb", unique=True) as file:
        figure.savefig(file, dpi=120, bbox_inches="tight", format="png")
    plt.close(figure)
