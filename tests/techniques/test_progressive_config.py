"""progressive.json trains on coarser grids first, validates on the full one, and resumes as it was."""

from pathlib import Path

import pytest
import torch
from conftest import OVERLAYS, TRAIN
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

PROGRESSIVE, MIX = (str(OVERLAYS / f"{name}.json") for name in ("progressive", "mix"))


class Killed(Exception):
    """The process is gone."""


def run(cohort_dir: Path, folder: Path, kill_after: int = 0, overlays: tuple = (), **overrides: object) -> tuple:
    """Weights after three epochs; sides of what was trained on, an epoch each; sides of what was validated."""
    parser, trained, validated = ConfigParser(), {}, set()
    parser.read_config([TRAIN, PROGRESSIVE, *overlays])
    options = {"dataset_dir": str(cohort_dir), "output_dir": str(folder), "channels": 2, "epochs": 3, "report": False}
    parser.update({**options, **overrides})
    torch.manual_seed(0)
    parser.get_parsed_content("config")
    trainer, evaluator = (parser.get_parsed_content(key) for key in ("train#trainer", "validate#evaluator"))

    @trainer.on(Events.ITERATION_COMPLETED)
    def _(engine: Engine) -> None:
        item = engine.state.output[0]
        trained.setdefault(engine.state.epoch, set()).update(item[key].shape[1:] for key in ("image", "label", "pred"))
        if engine.state.iteration == kill_after:
            raise Killed

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _(engine: Engine) -> None:
        validated.update(item["image"].shape[1:] for item in engine.state.output)

    try:
        trainer.run()
    finally:
        parser.get_parsed_content("run_folder").release()
    return trainer.network.state_dict(), trained, validated


@pytest.mark.slow
def test_training_goes_from_coarse_to_fine_and_resumes_bit_identically(cohort_dir: Path, tmp_path: Path) -> None:
    whole, trained, validated = run(cohort_dir, tmp_path / "whole")
    assert trained == {1: {(16,) * 3}, 2: {(24,) * 3}, 3: {(32,) * 3}}
    assert validated == {(32,) * 3}
    with pytest.raises(Killed):
        run(cohort_dir, tmp_path / "killed", kill_after=15)  # in the second epoch
    resumed, trained, _ = run(cohort_dir, tmp_path / "killed", resume=True)
    assert trained == {2: {(24,) * 3}, 3: {(32,) * 3}}
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_together_with_mix_the_soft_labels_are_resized(cohort_dir: Path, tmp_path: Path) -> None:
    trained = run(cohort_dir, tmp_path, overlays=(MIX,), epochs=1, progressive_shares=[0.5], inner_fold="none")[1]
    assert trained == {1: {(16,) * 3}}
