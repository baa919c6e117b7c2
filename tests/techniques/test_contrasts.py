"""An epoch has each scan once, in a contrast that is drawn by the weights, as a function of seed and epoch."""

from collections import Counter

import pytest
from monai.data import Dataset

from scripts.common.errors import InputError
from scripts.data.seeded_order import SeededSampler
from scripts.techniques.contrasts import ContrastSampler

WEIGHTS = {"T1w": 1.0, "T2w": 2.0, "FLAIR": 1.0}
HAVE = [["T1w", "T2w", "FLAIR"], ["T2w", "FLAIR"], ["T1w", "T2w", "FLAIR"], ["FLAIR"]]
SCANS = Dataset([{"label": str(i), "contrast": name} for i, names in enumerate(HAVE) for name in names])


def epoch(number: int, seed: int = 0, skip: int = 0, **weights: float) -> list[dict]:
    sampler = ContrastSampler(SCANS, seed, WEIGHTS | weights)
    sampler.set_epoch(number)
    sampler.skip = skip
    return [SCANS.data[index] for index, _ in sampler]


def test_each_scan_is_there_once_an_epoch() -> None:
    assert len(ContrastSampler(SCANS, 0, WEIGHTS)) == 4
    for number in range(5):
        assert sorted(scan["label"] for scan in epoch(number)) == ["0", "1", "2", "3"]


def test_contrasts_are_drawn_in_proportion_to_the_weights_of_those_that_the_scan_has() -> None:
    drawn = Counter((scan["label"], scan["contrast"]) for number in range(2000) for scan in epoch(number))
    for label, expected in (("0", {"T1w": 500, "T2w": 1000, "FLAIR": 500}), ("1", {"T2w": 1333, "FLAIR": 667})):
        assert {name: drawn[label, name] for name in expected} == pytest.approx(expected, abs=80)
    assert drawn["3", "FLAIR"] == 2000


def test_draws_follow_seed_and_epoch_and_the_rest_of_an_epoch_is_the_same() -> None:
    assert epoch(3) == epoch(3)
    assert epoch(3)[2:] == epoch(3, skip=2)
    assert epoch(3) != epoch(4) != epoch(4, seed=1)


def test_a_weight_of_0_is_never_drawn() -> None:
    assert "T2w" not in {scan["contrast"] for number in range(50) for scan in epoch(number, T2w=0)}


def test_scans_without_contrasts_are_sampled_as_always() -> None:
    for data in ([{"label": str(i)} for i in range(9)], [{}] * 9):
        ours, theirs = ContrastSampler(Dataset(data), 4, WEIGHTS), SeededSampler(data, 4)
        ours.set_epoch(2)
        theirs.set_epoch(2)
        assert [*ours] == [*theirs]


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        ({"T1w": -1}, "contrasts: T1w -1: expected a weight of at least 0"),
        ({"FLAIR": 0}, "contrasts: all that the scan of 3 has are of weight 0"),
    ],
)
def test_impossible_weights_are_one_line(weights: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        ContrastSampler(SCANS, 0, WEIGHTS | weights)
