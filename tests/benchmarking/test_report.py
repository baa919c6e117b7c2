"""Ratios, the floor and the memory a voxel are what one computes by hand; the plot shows the measured points."""

from pathlib import Path

import pytest
from matplotlib.image import imread

from scripts.benchmarking.report import BUNDLE, REFERENCE, draw_scaling, floor_seconds, tables


def case(implementation: str, seconds: list[float], mode: str = "inference", **others: object) -> dict:
    row = {"mode": mode, "implementation": implementation, "channels": 16, "grid": [32, 32, 32]}
    return row | {"seconds": seconds, "peak_bytes": [5_000_000], "parameters": 56_194} | others


def results(*cases: dict) -> dict:
    return {
        "date": "2026-11-21",
        "device": "a CPU",
        "features": ["avx2"],
        "threads": 2,
        "precision": "bf16",
        "python": "3.11",
        "versions": {"torch": "2.13.0", "openvino": None},
        "command": "scripts/benchmark.py",
        "rates": {"fp32": 1e11, "bf16": 4e11, "bytes": 2e10},
        "cases": list(cases),
    }


def test_a_ratio_is_that_of_the_medians() -> None:
    text = tables(results(case(REFERENCE, [9.0, 6.0, 1.0]), case(BUNDLE, [2.0, 1.5, 7.0])))
    assert "| MeshNet-16 | dilated, eager torch | 6 (1 to 9) | 3.00 | 5 |" in text


def test_networks_of_another_kind_are_compared_with_each_width() -> None:
    ours = [case(BUNDLE, [seconds], channels=channels) for channels, seconds in ((5, 1.0), (26, 4.0))]
    text = tables(results(*ours, case("UNet", [2.0], channels=None, parameters=1_979_610)))
    assert "| 1,979,610 parameters | UNet | 2 (2 to 2) | 2.00 / 0.50 |" in text
    assert "compared with MeshNet-5 / MeshNet-26." in text


def test_what_was_skipped_is_in_the_table_with_its_reason() -> None:
    text = tables(results(case(BUNDLE, [1.0]), case("OpenVINO", [], skipped="openvino not installed")))
    assert "| MeshNet-16 | OpenVINO | openvino not installed |" in text
    assert "openvino not installed" in text.splitlines()[0]  # among the versions


def test_the_floor_is_arithmetic_or_traffic_whichever_takes_longer() -> None:
    voxels, wide, narrow = 32**3, case(BUNDLE, [1.0], channels=26), case(BUNDLE, [1.0], channels=5)
    weights = 147_474 - 9 * 3 * 26 - 2  # of the paper's count, without biases and normalizations
    assert floor_seconds(wide, results()) == pytest.approx(2 * weights * voxels / 4e11)
    slow_memory = results() | {"rates": {"bf16": 4e11, "bytes": 1e9}}
    assert floor_seconds(narrow, slow_memory) == pytest.approx(9 * 2 * 5 * 2 * voxels / 1e9)


def test_the_largest_grid_is_the_largest_that_fits() -> None:
    rows = [case(BUNDLE, [], mode="memory", grid=None, bytes_per_voxel=100.0)]
    (row,) = [line for line in tables(results(*rows)).splitlines() if "this bundle | 100 |" in line]
    sides = [int(cell.strip().rstrip("³")) for cell in row.split("|")[4:8]]
    for side, memory in zip(sides, (8, 12, 24, 80), strict=True):
        assert 100 * side**3 <= memory * 1e9 < 100 * (side + 16) ** 3
        assert side % 16 == 0


def test_the_plot_is_a_picture_with_a_line_for_each_network(tmp_path: Path) -> None:
    rows = [
        case(name, [side * factor], grid=[side] * 3, channels=channels)
        for side in (32, 64)
        for channels in (5, 16)
        for name, factor in ((REFERENCE, 2.0), (BUNDLE, 1.0))
    ]
    draw_scaling(results(*rows), tmp_path / "scaling.png")
    colours = imread(tmp_path / "scaling.png")[..., :3].reshape(-1, 3)
    saturated = colours[colours.max(1) - colours.min(1) > 0.5]
    assert len({tuple(colour.round(1)) for colour in saturated}) >= 2


def test_the_plot_of_nothing_is_no_error(tmp_path: Path) -> None:
    draw_scaling(results(), tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").is_file()
