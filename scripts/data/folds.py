"""Nested, stratified folds: each subject counts once, so scikit-learn's StratifiedKFold can deal them out."""

import warnings
from collections import Counter

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from scripts.common.errors import InputError


def assign_folds(scans: list[dict], n_outer: int, n_inner: int, seed: int) -> None:
    """Set every scan's ``fold`` and ``inner_folds``, stratified by quartile of lesion volume and by acquisition.

    Subjects are dealt out, so none is split, by their largest lesion; fewer than folds are an ``InputError``.
    """
    largest = {scan["subject"]: scan for scan in sorted(scans, key=lambda scan: scan["lesion_volume"])}
    if len(largest) < n_outer or len(largest) - -(-len(largest) // n_outer) < n_inner:
        raise InputError(f"{len(largest)} subjects are too few for {n_outer} outer and {n_inner} inner folds")
    volumes = [scan["lesion_volume"] for scan in largest.values()]
    groups = np.digitize(volumes, np.quantile(volumes, (0.25, 0.5, 0.75))).tolist()
    strata = {s: (largest[s]["acquisition"] or "", group) for s, group in zip(largest, groups, strict=True)}
    fold = _split(strata, n_outer, seed)
    inner = [_split({s: strata[s] for s in strata if fold[s] != k}, n_inner, seed) for k in range(n_outer)]
    for scan in scans:
        scan["fold"] = fold[scan["subject"]]
        scan["inner_folds"] = [folds.get(scan["subject"]) for folds in inner]


def table_of_folds(scans: list[dict]) -> str:
    """What each outer fold holds, a line each, and all of them together."""
    scans = pd.DataFrame(scans).sort_values("fold").fillna({"acquisition": "no acq"})
    folds = pd.concat([scans, scans.assign(fold="all")]).groupby("fold", sort=False)
    counts = folds.agg(subjects=("subject", "nunique"), scans=("image", "size"))
    acquired = folds["acquisition"].value_counts().unstack(fill_value=0).sort_index(axis=1)
    volumes = folds["lesion_volume"].agg(lambda v: "{:.1f} [{:.1f}-{:.1f}]".format(*v.quantile([0.5, 0, 1]) / 1000))
    table = pd.concat([counts, acquired, volumes.rename("lesion volume in mL, median [min-max]")], axis=1)
    return table.rename_axis("fold").reset_index().to_string(index=False)


def _split(strata: dict[str, tuple[str, int]], n_folds: int, seed: int) -> dict[str, int]:
    """Every subject's fold; a stratum is (acquisition, group of lesion volume)."""
    for level in (strata, {s: group for s, (_, group) in strata.items()}, dict.fromkeys(strata, 0)):
        if max(Counter(level.values()).values()) >= n_folds:  # scikit-learn refuses if every stratum is smaller
            break
    # It deals the strata out like cards in this order, so that neighbours, a whole acquisition, come out even as well.
    subjects = sorted(level, key=lambda s: (level[s], s))
    order = sorted(set(level.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of strata smaller than n_folds: they too are dealt out evenly
        kfold = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        splits = kfold.split(subjects, [order.index(level[s]) for s in subjects])
        return {subjects[i]: fold for fold, (_, held_out) in enumerate(splits) for i in held_out}
