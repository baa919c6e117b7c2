"""keep_checkpoints.json: the same files whether the run was stopped in the middle or not, ready for use."""

from pathlib import Path

import pytest
import torch
from conftest import EVALUATE, recipe, train_here
from ignite.engine import Events


def train(cohort_dir: Path, folder: Path, **overrides: object) -> None:
    options = {"epochs": 3, "report": False, "keep_best": 1, "keep_every": 2, **overrides}
    train_here(cohort_dir, folder, "keep_checkpoints", **options)


def weights_in(folder: Path) -> dict[str, dict]:
    return {path.name: torch.load(path) for path in sorted((folder / "epochs").glob("*.pt"))}


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_keeps_the_same_and_any_can_be_evaluated(
    cohort_dir: Path, tmp_path: Path
) -> None:
    train(cohort_dir, tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(cohort_dir, tmp_path / "stopped", stop=Events.ITERATION_STARTED(once=15))
    train(cohort_dir, tmp_path / "stopped", resume=True)

    whole, stopped = weights_in(tmp_path / "whole"), weights_in(tmp_path / "stopped")
    best = torch.load(tmp_path / "whole" / "checkpoint_last.pt")["best"]["best_metric_epoch"]
    assert set(whole) == {"epoch-0002.pt", f"epoch-{best:04d}.pt"} == set(stopped)
    for name, state in whole.items():
        assert all(torch.equal(state[key], stopped[name][key]) for key in state)
    model = torch.load(tmp_path / "whole" / "model.pt")
    assert all(torch.equal(model[key], whole[f"epoch-{best:04d}.pt"][key]) for key in model)

    weights = tmp_path / "whole" / "epochs" / "epoch-0002.pt"
    given = {"dataset_dir": cohort_dir, "output_dir": tmp_path / "whole", "ckpt_path": weights, "report": False}
    recipe("keep_checkpoints", EVALUATE, **given).get_parsed_content("run")
    assert str(weights) in (tmp_path / "whole" / "summary.json").read_text()


@pytest.mark.slow
def test_it_works_with_batches_accumulation_and_no_validation(cohort_dir: Path, tmp_path: Path) -> None:
    train(cohort_dir, tmp_path, epochs=2, batch_size=2, accumulation_steps=2, inner_fold="none")
    assert set(weights_in(tmp_path)) == {"epoch-0002.pt"}
