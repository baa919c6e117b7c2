"""The table prints mean (sd) of runs as the paper does, with the paper's own numbers beside them."""

from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from scripts.comparison.table import as_html, as_markdown, as_tex, table


@pytest.fixture
def found(plan_of: Callable, tmp_path: Path) -> tuple[pandas.DataFrame, list[str]]:
    """A table of made-up runs: three of thin, the paper's MeshNet-5, and one of wide."""
    plan = plan_of(tmp_path)
    plan.check()
    plan.left_out["vnet"] = "cannot be trained at 16x16x16"
    costs = {"parameters": 5682, "train_seconds": 7210.0, "scan_seconds": 0.5, "state": "COMPLETE"}
    runs = [
        {"row": "MeshNet-5", "dice": dice, "dice_with_background": 0.9, "avd": avd, "mcc": 0.5, **costs}
        for dice, avd in ((0.6, 0.1), (0.7, 0.3), (0.8, float("nan")))
    ]
    runs += [{**runs[0], "row": "wide & co", "dice": 0.75}, {"row": "MeshNet-5", "state": "FAIL"}]
    test = {"metric": "dice", "row": "wide & co", "n": 8, "zeros": 1, "ties": 2, "exact": False, "p_holm": 0.0421}
    return table(pandas.DataFrame(runs), pandas.DataFrame([test]), plan)


def test_a_row_is_mean_and_standard_deviation_over_runs(found: tuple) -> None:
    rows = found[0].set_index("network")
    assert list(rows.index[:2]) == ["wide & co", "MeshNet-5"]  # by DICE
    ours = rows.loc["MeshNet-5"]
    assert ours["DICE"] == "0.700 (0.100)"
    assert ours["AVD"] == "0.200 (0.141)"  # of the two that are defined
    assert (ours["parameters"], ours["training, s"], ours["runs"]) == ("5,682", "7,210", "3 of 4")
    assert rows.loc["wide & co", "DICE"] == "0.750"
    assert rows.loc["wide & co", "p (Holm)"] == "0.042"
    assert ours["p (Holm)"] == "reference"


def test_the_papers_table_is_beside_it(found: tuple) -> None:
    rows = found[0].set_index("network")
    assert len(rows) == 10 + 1  # all that the paper has, and one of ours
    paper = ["paper: parameters", "paper: DICE", "paper: AVD", "paper: MCC"]
    assert rows.loc["MeshNet-5", paper].tolist() == ["5,682", "0.848 (0.023)", "0.280 (0.060)", "0.708 (0.042)"]
    assert rows.loc["U-MAMBA-BOT", paper[:2]].tolist() == ["7,351,400", "0.870 (0.012)"]
    assert rows.loc["U-MAMBA-BOT", "DICE"] == "-"


def test_notes_say_what_was_tested_and_what_is_left_out(found: tuple) -> None:
    notes = " ".join(found[1])
    assert "SIMULATED" in notes.upper()
    assert "9 subjects, at most 1 equal pairs (left out) and 2 ties; Holm's correction over 1 rows" in notes
    assert "vnet is left out: cannot be trained at 16x16x16." in notes


@pytest.mark.parametrize(("epochs", "said"), [(1, False), (3, True)])
def test_other_epochs_than_all_others_are_said(plan_of: Callable, tmp_path: Path, epochs: int, said: bool) -> None:
    networks = [{"name": "thin"}, {"name": "trees", "overrides": {"epochs": epochs}}]
    plan = plan_of(tmp_path, networks=networks)
    plan.check()
    runs = pandas.DataFrame([{"row": "thin", "dice": 0.5, "parameters": 1, "state": "COMPLETE"}])
    runs = runs.assign(train_seconds=1.0, scan_seconds=1.0)
    notes = table(runs, pandas.DataFrame(), plan)[1]
    assert ("trees has 3 instead of 1 epochs." in notes) is said
    assert not any("1 instead of 1" in note for note in notes)


def test_three_formats_hold_the_same_cells(found: tuple) -> None:
    markdown, tex, html = (write(*found) for write in (as_markdown, as_tex, as_html))
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 11
    assert len({line.count("|") for line in lines}) == 1
    for cell in found[0].to_numpy().ravel():
        assert str(cell).replace("&", "&amp;") in html
        assert str(cell).replace("&", r"\&") in tex
    assert r"\toprule" in tex
    assert html.startswith("<!doctype html>")
