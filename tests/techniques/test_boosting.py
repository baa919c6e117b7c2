"""baseline.json draws voxels of each scan, fits trees to them, and is trained and tested like a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EVALUATE, recipe, train_here
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier

from scripts.common.errors import InputError
from scripts.networks.boosted_trees import BoostedTrees
from scripts.techniques.boosting import TreeBoosting

BOOSTER = HistGradientBoostingClassifier(max_iter=4, max_leaf_nodes=5, early_stopping=False, random_state=0)


def boosting(**changes: object) -> TreeBoosting:
    network = changes.pop("network", BoostedTrees(4, 5))
    options = {"validated": network, "booster": BOOSTER, "voxels": 50, "class_weights": [0.5, 1.0], **changes}
    return TreeBoosting(network, **options)


def test_drawn_voxels_count_for_all_of_their_class_times_its_weight() -> None:
    one, mask = boosting(), torch.zeros(1000, dtype=torch.bool)
    mask[:30] = True
    torch.manual_seed(0)
    one._draw(torch.arange(1000.0).expand(2, -1), mask)
    drawn = one.state_dict()
    assert drawn["features"].shape == (80, 2)
    assert drawn["classes"].bincount().tolist() == [50, 30]
    assert (drawn["features"][:, 0] < 30).tolist() == drawn["classes"].bool().tolist()
    assert len(drawn["features"][:, 0].unique()) == 80
    sums = [drawn["weights"][drawn["classes"] == value].sum().item() for value in (0, 1)]
    assert sums == pytest.approx([0.5 * 970, 1.0 * 30])


def test_trees_are_those_that_scikit_learn_fits_to_all_that_was_drawn() -> None:
    rng = np.random.default_rng(0)
    one, features = boosting(), rng.random((2, 200, 13), dtype=np.float32)
    for part in features:
        one._draw(torch.from_numpy(part.T.copy()), torch.from_numpy(part.sum(axis=1) > 6.5))
        one._fit()
    drawn = {name: part.numpy() for name, part in one.state_dict().items()}
    assert len(drawn["classes"]) > 150
    expected = clone(BOOSTER).fit(drawn["features"], drawn["classes"], drawn["weights"])
    one.network.features = lambda image: image
    found = one.network(torch.from_numpy(features[1].T.copy()).view(1, 13, 200, 1, 1)).softmax(dim=1)[0].flatten(1)
    np.testing.assert_allclose(found.T.numpy(), expected.predict_proba(features[1]), atol=1e-6)
    assert found[1].max() - found[1].min() > 0.2


def test_a_state_keeps_what_was_drawn() -> None:
    one, other = boosting(), boosting()
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == {}
    one._draw(torch.rand(2, 100), torch.arange(100) < 20)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def options(folder: Path) -> dict:
    return {"trees": 30, "leaves": 15, "voxels_per_scan": 300, "report": False, "output_dir": str(folder)}


@pytest.mark.slow
def test_it_finds_lesions_and_is_tested_like_a_network(cohort_dir: Path, tmp_path: Path) -> None:
    train_here(cohort_dir, tmp_path, "baseline", **options(tmp_path))
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    # without the overlay: the card says what the network is
    recipe(EVALUATE, dataset_dir=cohort_dir, output_dir=tmp_path).get_parsed_content("run")
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["dice"]["mean"] > 0.4
    assert (tmp_path / "metrics.csv").is_file()
    assert "BoostedTrees, held-out test fold" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_a_fit_that_is_killed_leaves_no_weights_and_begins_again(
    cohort_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HistGradientBoostingClassifier, "fit", killed)
        with pytest.raises(BaseException):  # noqa: B017, PT011, whatever Ignite and MONAI make of it
            train_here(cohort_dir, tmp_path, "baseline", resume=True, **options(tmp_path))
    assert not list(tmp_path.glob("model.*"))
    train_here(cohort_dir, tmp_path, "baseline", resume=True, **options(tmp_path))
    assert (tmp_path / "model.pt").is_file()


@pytest.mark.parametrize(
    ("changes", "processes", "line"),
    [
        ({"network": torch.nn.Identity()}, 1, "fits trees, the network is a Identity; leave one"),
        ({"validated": BoostedTrees()}, 1, "trees have no weights to average; leave ema.json out"),
        ({}, 2, "trees are fitted by one process; start it without torchrun"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    changes: dict, processes: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: processes)
    with pytest.raises(InputError, match=f"^baseline.json: {line}"):
        boosting(**changes)


def test_scans_without_lesions_are_one_line() -> None:
    one = boosting()
    one._draw(torch.rand(2, 100), torch.zeros(100, dtype=torch.bool))
    with pytest.raises(InputError, match=r"^baseline.json: no voxel of a lesion was drawn; train on scans with"):
        one._fit()
