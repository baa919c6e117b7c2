"""Test networks against a reference, paired over the subjects of all test folds."""

from collections.abc import Sequence

import numpy as np
import pandas
from scipy import stats

METRICS = ("dice", "dice_with_background", "avd", "mcc")
EXACT = 50  # as R, whose wilcox.test takes the exact distribution for fewer pairs than that


def signed_rank(differences: Sequence[float]) -> dict:
    """Test paired differences by Wilcoxon's signed ranks, two-sided; the numbers are those of R's ``wilcox.test``.

    Zeros are left out. The distribution is exact for fewer than 50 pairs if there were neither zeros nor ties, else the
    normal one with corrections for ties and continuity.

    Returns:
        ``n`` pairs that are not equal, ``zeros``, ``ties`` (pairs whose absolute difference others have, too), ``v``
        (the sum of the ranks of positive differences), ``p`` (1 if all are zero) and ``exact``.
    """
    all_of_them = np.asarray(differences, float)
    nonzero = all_of_them[all_of_them != 0]
    _, counts = np.unique(np.abs(nonzero), return_counts=True)
    ties = int(counts[counts > 1].sum())
    found = {"n": len(nonzero), "zeros": len(all_of_them) - len(nonzero), "ties": ties}
    if not len(nonzero):
        return {**found, "v": 0.0, "p": 1.0, "exact": False}
    exact = len(nonzero) < EXACT and not ties and not found["zeros"]
    p = float(stats.wilcoxon(nonzero, correction=True, method="exact" if exact else "approx").pvalue)
    return {**found, "v": float(stats.rankdata(np.abs(nonzero))[nonzero > 0].sum()), "p": p, "exact": exact}


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values (Holm, Scand J Stat 1979, 6:65-70); they stay in the order given."""
    order = np.argsort(p)
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def against(subjects: pandas.DataFrame, reference: str) -> pandas.DataFrame:
    """Test each row of the table against ``reference``, for each metric that ``subjects`` has.

    A subject's value is the mean over restarts (and its scans). Holm's correction is over the rows of a metric.

    Args:
        subjects: a row for each run and scan: ``row``, ``subject`` and metrics.
        reference: a ``row``.

    Returns:
        ``metric``, ``row``, ``median_difference`` (row - reference), what ``signed_rank`` says, and ``p_holm``.
    """
    found = []
    for metric in [name for name in METRICS if name in subjects]:
        values = subjects.pivot_table(index="subject", columns="row", values=metric, aggfunc="mean")
        if reference not in values:
            continue
        family = []
        for row in values.columns.drop(reference):
            pairs = values[[row, reference]].dropna()
            differences = (pairs[row] - pairs[reference]).round(9)  # equal sums in another order are equal
            tested = signed_rank(differences)
            family.append({"metric": metric, "row": row, "median_difference": differences.median(), **tested})
        for test, p in zip(family, holm([test["p"] for test in family]), strict=True):
            found.append({**test, "p_holm": p})
    return pandas.DataFrame(found)
