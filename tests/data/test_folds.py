"""Folds are even in size and in strata; ARC's own folds are tested in test_datalist.py."""

from collections import Counter

import numpy as np
import pytest

from scripts.data.folds import assign_folds, table_of_folds


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_scans", [9, 20, 54, 223])
def test_every_fold_has_its_share_of_subjects_and_of_large_lesions(n_scans: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scans = [
        {"subject": str(i), "acquisition": rng.choice(["spc3", "spc3p2"]), "lesion_volume": float(v)}
        for i, v in enumerate(rng.lognormal(11, 1, n_scans))
    ]
    assign_folds(scans, 3, 3, seed)
    sizes = Counter(scan["fold"] for scan in scans)
    assert set(sizes) == {0, 1, 2}
    assert max(sizes.values()) - min(sizes.values()) <= 1
    large = np.median([scan["lesion_volume"] for scan in scans])
    shares = Counter(scan["fold"] for scan in scans if scan["lesion_volume"] > large)
    assert max(shares.values()) - min(shares.values()) <= 2
    for outer in range(3):
        inner = Counter(scan["inner_folds"][outer] for scan in scans if scan["fold"] != outer)
        assert set(inner) == {0, 1, 2}
        assert all(scan["inner_folds"][outer] is None for scan in scans if scan["fold"] == outer)


def test_all_scans_of_a_subject_share_their_folds() -> None:
    scans = [{"subject": str(i % 12), "acquisition": None, "lesion_volume": float(i)} for i in range(36)]
    assign_folds(scans, 3, 3, seed=0)
    for subject in map(str, range(12)):
        folds = {(s["fold"], tuple(s["inner_folds"])) for s in scans if s["subject"] == subject}
        assert len(folds) == 1


def test_the_table_has_a_line_for_each_fold_and_a_column_for_each_acquisition() -> None:
    names = [None, "spc3", "ab", "spc3"]
    scans = [
        {"subject": str(i // 2), "image": f"{i}", "acquisition": names[i], "lesion_volume": 1000.0 * i, "fold": i % 2}
        for i in range(4)
    ]
    assert [line.split() for line in table_of_folds(scans).splitlines()[1:]] == [
        ["0", "2", "2", "1", "1", "0", "1.0", "[0.0-2.0]"],
        ["1", "2", "2", "0", "0", "2", "2.0", "[1.0-3.0]"],
        ["all", "2", "4", "1", "1", "2", "1.5", "[0.0-3.0]"],
    ]
