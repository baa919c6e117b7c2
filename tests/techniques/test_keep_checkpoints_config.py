"""keep_checkpoints.json: the same files whether the run was stopped in the middle or not, ready for use."""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import EVALUATE, OVERLAYS, TRAIN
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism

KEEP = str(OVERLAYS / "keep_checkpoints.json")


def parsed(cohort_dir: Path, folder: Path, *overlays: str, **overrides: object) -> ConfigParser:
    torch.set_num_threads(1)
    parser = ConfigParser()
    parser.read_config([TRAIN, KEEP, *overlays])
    values = {"channels": 2, "epochs": 3, "cache": "none", "report": False, "keep_best": 1, "keep_every": 2}
    parser.update({"dataset_dir": str(cohort_dir), "output_dir": str(folder), **values, **overrides})
    return parser


def train(parser: ConfigParser) -> None:
    try:
        parser.get_parsed_content("run")
    finally:
        parser.get_parsed_content("run_folder").release()


def weights_in(folder: Path) -> dict[str, dict]:
    return {path.name: torch.load(path) for path in sorted((folder / "epochs").glob("*.pt"))}


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_keeps_the_same_and_any_can_be_evaluated(
    cohort_dir: Path, tmp_path: Path
) -> None:
    train(parsed(cohort_dir, tmp_path / "whole"))
    parser = parsed(cohort_dir, tmp_path / "stopped")
    set_determinism(seed=0)  # as "run" does before it builds the network, which the next line builds
    parser.get_parsed_content("train#trainer").add_event_handler(
        Events.ITERATION_STARTED(once=15), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit):
        train(parser)
    train(parsed(cohort_dir, tmp_path / "stopped", resume=True))

    whole, stopped = weights_in(tmp_path / "whole"), weights_in(tmp_path / "stopped")
    best = torch.load(tmp_path / "whole" / "checkpoint_last.pt")["best"]["best_metric_epoch"]
    assert set(whole) == {"epoch-0002.pt", f"epoch-{best:04d}.pt"} == set(stopped)
    for name, state in whole.items():
        assert all(torch.equal(state[key], stopped[name][key]) for key in state)
    model = torch.load(tmp_path / "whole" / "model.pt")
    assert all(torch.equal(model[key], whole[f"epoch-{best:04d}.pt"][key]) for key in model)

    weights = tmp_path / "whole" / "epochs" / "epoch-0002.pt"
    parsed(cohort_dir, tmp_path / "whole", EVALUATE, ckpt_path=str(weights)).get_parsed_content("run")
    assert str(weights) in (tmp_path / "whole" / "summary.json").read_text()


@pytest.mark.slow
def test_it_works_with_batches_accumulation_and_no_validation(cohort_dir: Path, tmp_path: Path) -> None:
    train(parsed(cohort_dir, tmp_path, epochs=2, batch_size=2, accumulation_steps=2, inner_fold="none"))
    assert set(weights_in(tmp_path)) == {"epoch-0002.pt"}
