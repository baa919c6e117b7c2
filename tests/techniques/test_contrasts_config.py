"""contrasts.json trains, validates and tests one network on T1w, T2w and FLAIR scans of simulated patients."""

from pathlib import Path

import pandas
import pytest
import torch
from conftest import EVALUATE, recipe, train_here
from ignite.engine import Engine


def train(cohort_dir: Path, folder: Path, **overrides: object) -> tuple[dict, list[str]]:
    """Weights, and the names of the files that were trained on."""
    names = []

    def note(engine: Engine) -> None:
        names.extend(Path(item["image"].meta["filename_or_obj"]).name for item in engine.state.batch)

    options = {"epochs": 4, "report": False, "watch": {"train#trainer": note}, **overrides}
    parser = train_here(cohort_dir, folder, "contrasts", **options)
    return parser.get_parsed_content("network").state_dict(), names


@pytest.fixture(scope="module")
def whole(contrast_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[str]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(contrast_dir, folder)


@pytest.mark.slow
def test_every_epoch_has_each_scan_once_in_one_of_its_contrasts(whole: tuple) -> None:
    names = whole[2]
    epochs = [names[start : start + 4] for start in range(0, len(names), 4)]
    assert len(epochs) == 4
    assert {len({name.split("_")[0] for name in epoch}) for epoch in epochs} == {4}
    assert {name.split("_")[-1] for name in names} == {"T1w.nii.gz", "T2w.nii.gz", "FLAIR.nii.gz"}
    assert len({tuple(sorted(epoch)) for epoch in epochs}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [["T1w", "T2w", "FLAIR"], ["FLAIR"]])
def test_the_test_scans_are_measured_in_the_contrasts_asked_for(
    contrast_dir: Path, tmp_path: Path, whole: tuple, chosen: list[str]
) -> None:
    given = {"dataset_dir": contrast_dir, "output_dir": tmp_path, "ckpt_path": whole[0] / "model.pt"}
    recipe("contrasts", EVALUATE, **given, contrasts=dict.fromkeys(chosen, 1.0)).get_parsed_content("run")
    table = pandas.read_csv(tmp_path / "metrics.csv")
    assert {*table["contrast"]} == {*chosen}
    assert [Path(image).name.split("_")[-1] for image in table["image"]] == [f"{c}.nii.gz" for c in table["contrast"]]
    assert table["subject"].nunique() == 3
    assert table["dice"].between(0, 1).all()
    assert all(f" {name}" in (tmp_path / "report.html").read_text() for name in chosen)


@pytest.mark.slow
def test_a_cohort_without_contrasts_is_trained_as_always(cohort_dir: Path, tmp_path: Path) -> None:
    sampler = {"_target_": "scripts.data.seeded_order.SeededSampler", "dataset": "@train#dataset", "seed": "@seed"}
    ours = train(cohort_dir, tmp_path / "ours", epochs=1, inner_fold="none")
    plain = train(cohort_dir, tmp_path / "plain", epochs=1, inner_fold="none", **{"train#sampler": sampler})
    assert ours[1] == plain[1]
    assert all(torch.equal(ours[0][key], plain[0][key]) for key in plain[0])
