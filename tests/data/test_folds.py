"""Folds are even in size and in strata; ARC's own folds are tested in test_datalist.py."""

from collections import Counter

import numpy as np
import pytest

from scripts.data.folds import assign_folds


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
