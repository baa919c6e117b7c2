"""Tests are R's, corrections the published ones, and pairs are subjects."""

import math

import numpy as np
import pandas
import pytest

from scripts.comparison.statistics import against, holm, signed_rank


def test_signed_rank_is_that_of_hollander_and_wolfe() -> None:
    """Depression scores of nine patients (Hollander & Wolfe 1973, p. 29; example of R's wilcox.test): V 40, one-sided
    p 0.01953, so two-sided twice that."""
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = signed_rank(np.subtract(before, after))
    assert (found["n"], found["zeros"], found["ties"], found["v"], found["exact"]) == (9, 0, 0, 40, True)
    assert found["p"] == pytest.approx(2 * 0.01953, abs=1e-5)


def test_signed_rank_with_ties_and_zeros_is_that_of_students_sleep() -> None:
    """Hours of sleep gained with two drugs (Student 1908, R's data set sleep): wilcox.test, paired, gives V 0 and
    p 0.009091, with warnings of ties and zeros."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = signed_rank(np.round(np.subtract(first, second), 9))
    assert (found["n"], found["zeros"], found["ties"], found["v"], found["exact"]) == (9, 1, 2, 0, False)
    assert found["p"] == pytest.approx(0.009091, abs=1e-6)


def test_with_zeros_the_distribution_is_the_normal_one_as_in_r() -> None:
    """R 4: wilcox.test(c(1, 2, 3, 4, 5, 0)) has V 15 and p 0.05906, "cannot compute exact p-value with zeroes"."""
    found = signed_rank([1, 2, 3, 4, 5, 0])
    z = (15 - 5 * 6 / 4 - 0.5) / np.sqrt(5 * 6 * 11 / 24)
    assert (found["n"], found["zeros"], found["v"], found["exact"]) == (5, 1, 15, False)
    assert found["p"] == pytest.approx(math.erfc(z / np.sqrt(2)))
    assert found["p"] == pytest.approx(0.05906, abs=1e-5)
    assert signed_rank([1, 2, 3, 4, 5])["p"] == pytest.approx(2 / 2**5)


def test_signed_rank_of_equals_says_nothing() -> None:
    found = signed_rank([0.0, 0.0, 0.0])
    assert (found["n"], found["zeros"], found["p"]) == (0, 3, 1.0)


def test_exact_up_to_49_pairs_and_normal_from_50_as_in_r() -> None:
    differences = np.arange(1, 51) + 0.5
    assert signed_rank(differences[:49])["p"] == pytest.approx(2 * 0.5**49)
    n = 50
    z = (n * (n + 1) / 4 - 0.5) / np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    tail = 0.5 * pytest.importorskip("scipy.special").erfc(z / np.sqrt(2))
    assert signed_rank(differences)["p"] == pytest.approx(2 * tail)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        # https://en.wikipedia.org/wiki/Holm-Bonferroni_method, example of four hypotheses; adjusted by its definition
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_is_that_of_published_examples(p: list, adjusted: list) -> None:
    assert holm(p) == pytest.approx(adjusted)


def table(values: dict[str, list[list[float]]]) -> pandas.DataFrame:
    """Subjects' DICE by row, a list for each restart."""
    rows = [
        {"row": row, "restart": restart, "subject": f"S{i}", "dice": dice}
        for row, restarts in values.items()
        for restart, all_of_it in enumerate(restarts)
        for i, dice in enumerate(all_of_it)
    ]
    return pandas.DataFrame(rows)


def test_subjects_are_paired_by_their_means_over_restarts() -> None:
    rng = np.random.default_rng(0)
    reference, other = rng.random((3, 12)), rng.random((3, 12))
    found = against(table({"A": reference.tolist(), "B": other.tolist()}), "A")
    expected = signed_rank(other.mean(0) - reference.mean(0))
    assert found["row"].tolist() == ["B"]
    assert found.loc[0, "n"] == 12  # not 36
    assert found.loc[0, ["v", "p"]].tolist() == pytest.approx([expected["v"], expected["p"]])
    assert found.loc[0, "median_difference"] == pytest.approx(np.median(other.mean(0) - reference.mean(0)))


def test_a_subject_that_one_network_lacks_is_no_pair_and_each_metric_is_a_family() -> None:
    rng = np.random.default_rng(1)
    values = table({name: [rng.random(8).tolist()] for name in "ABC"})
    values["avd"] = rng.random(len(values))
    values = values[~((values["row"] == "B") & (values["subject"] == "S3"))]
    found = against(values, "A").set_index(["metric", "row"])
    assert found.loc[("dice", "B"), "n"] == 7
    assert found.loc[("dice", "C"), "n"] == 8
    for metric in ("dice", "avd"):
        assert found.loc[metric, "p_holm"].tolist() == pytest.approx(holm(found.loc[metric, "p"].tolist()))
