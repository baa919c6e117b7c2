"""A subject's row is its metrics; the pooled figures are pandas'; undefined values are left out and counted."""

import json
from pathlib import Path

import pandas
import pytest
import torch
from ignite.engine import Engine, Events

from scripts.evaluation.subject_table import SubjectTable, harmless

FACTS = ("subject", "session", "acquisition", "lesion_volume", "image")


def tabulate(
    folder: Path, dice: list[list[float]], avd: list[float], subject: str = "S"
) -> tuple[pandas.DataFrame, dict]:
    rows = [(f"{subject}{i}", None, "spc3", 10.0 * i, f"/data/{i}.nii.gz") for i in range(len(avd))]
    scans = [dict(zip(FACTS, row, strict=True)) for row in rows]
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {"val_mean_dice": torch.tensor(dice), "val_avd": torch.tensor(avd)[:, None]}
    SubjectTable(scans, str(folder), {"cohort": "test"}).attach(engine)
    engine.run([0])
    return pandas.read_csv(folder / "metrics.csv"), json.loads((folder / "summary.json").read_text())


def test_rows_and_pooled_figures(tmp_path: Path) -> None:
    table, summary = tabulate(tmp_path, [[0.5], [0.25], [0.875]], [0.1, 0.7, float("nan")])
    assert table["subject"].tolist() == ["S0", "S1", "S2"]
    assert table["dice"].tolist() == [0.5, 0.25, 0.875]
    assert table["avd"].isna().tolist() == [False, False, True]
    assert summary["cohort"] == "test"
    assert summary["metrics"]["avd"]["n"] == 2
    for column in ("dice", "avd"):
        pooled = summary["metrics"][column]
        for name, value in (("mean", "mean"), ("sd", "std"), ("median", "median"), ("min", "min"), ("max", "max")):
            assert pooled[name] == pytest.approx(getattr(table[column], value)(), abs=1e-6)


def test_a_metric_of_several_classes_is_averaged_over_them(tmp_path: Path) -> None:
    table, _ = tabulate(tmp_path, [[1.0, 0.5], [0.75, 0.25]], [0.1, 0.2])
    assert table["dice"].tolist() == [0.75, 0.5]


def test_one_subject_has_no_standard_deviation(tmp_path: Path) -> None:
    _, summary = tabulate(tmp_path, [[0.5]], [float("nan")])
    assert summary["metrics"]["dice"]["sd"] is None
    assert summary["metrics"]["avd"] == {"n": 0, "mean": None, "sd": None, "median": None, "min": None, "max": None}


def test_an_infinite_distance_is_in_the_table_and_not_in_json(tmp_path: Path) -> None:
    table, _ = tabulate(tmp_path, [[0.5], [0.25]], [0.1, float("inf")])
    assert table["avd"].tolist() == [0.1, float("inf")]
    strict = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict["metrics"]["avd"]["mean"] is None


def test_cells_without_a_value_are_empty(tmp_path: Path) -> None:
    tabulate(tmp_path, [[0.5], [0.25]], [0.1, float("nan")])
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "subject,session,acquisition,lesion_volume,dice,avd,image"
    assert lines[2] == "S1,,spc3,10.0,0.25,,/data/1.nii.gz"


def test_the_printed_table_has_a_line_a_metric(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        tabulate(tmp_path, [[0.5], [0.25], [0.75]], [0.125, float("nan"), float("nan")])
    lines = [line.split() for line in caplog.text.splitlines()]
    assert ["n", "mean", "sd", "median", "min", "max"] in lines
    assert ["dice", "3", "0.500", "0.250", "0.500", "0.250", "0.750"] in lines
    assert ["avd", "1", "0.125", "-", "0.125", "0.125", "0.125"] in lines


@pytest.mark.parametrize("subject", ["=SUM(A1)", "+1", "-2", "@cmd", "\t=1"])
def test_a_name_that_a_spreadsheet_would_run_is_a_text_there(tmp_path: Path, subject: str) -> None:
    table, _ = tabulate(tmp_path, [[-0.5], [0.25]], [0.1, 0.2], subject)
    assert table["subject"].tolist() == [f"'{subject}0", f"'{subject}1"]
    assert table["dice"].tolist() == [-0.5, 0.25]  # a negative number is a number
    assert harmless("S=1") == "S=1"


def test_what_is_measured_over_all_subjects_is_pooled_and_has_no_column(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = {"val_mean_dice": 0.5, "val_volume_bias": -3.25, "val_volume_r2": float("nan")}
    engine.state.metric_details = {"val_mean_dice": torch.tensor([[0.25], [0.75]])}
    scans = [dict.fromkeys(FACTS, "x")] * 2
    SubjectTable(scans, str(tmp_path), {}).attach(engine)
    with caplog.at_level("INFO"):
        engine.fire_event(Events.COMPLETED)
    assert list(pandas.read_csv(tmp_path / "metrics.csv")) == [*FACTS[:4], "dice", "image"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["over_subjects"] == {"volume_bias": -3.25, "volume_r2": None}
    assert "volume_bias  -3.250" in caplog.text
    assert "volume_r2  -" in caplog.text
