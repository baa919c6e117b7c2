"""Pictures show every network and every subject."""

from pathlib import Path

import matplotlib.image
import pandas
import pytest

from scripts.comparison import pictures


@pytest.mark.slow
def test_a_comparison_has_its_pictures(compared: Path) -> None:
    for name in ("dice", "parameters", "lesion_size", "volumes", "reliability"):
        assert matplotlib.image.imread(compared / f"{name}.png").std() > 0.01


@pytest.fixture
def subjects() -> pandas.DataFrame:
    """Eight subjects of two networks; B finds nothing in the first."""
    volumes = [1, 2, 4, 8, 16, 32, 64, 128]
    rows = [
        {"row": row, "subject": f"S{i}", "dice": dice, "true_volume": volume, "predicted_volume": dice * volume}
        for row, quality in (("A", 0.9), ("B", 0.0))
        for i, volume in enumerate(volumes)
        for dice in [quality + i * 0.01]
    ]
    return pandas.DataFrame(rows)


def test_dice_is_shown_of_each_subject_the_best_network_on_top(subjects: pandas.DataFrame) -> None:
    (axis,) = pictures._distribution(subjects).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["B", "A"]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert sorted(points[1].get_xdata()) == pytest.approx([0.9 + i * 0.01 for i in range(8)])


def test_size_is_shown_in_quarters_and_a_volume_of_zero_at_the_edge(subjects: pandas.DataFrame) -> None:
    (axis,) = pictures._by_size(subjects).axes
    line = next(line for line in axis.lines if line.get_label() == "A")
    assert line.get_xdata() == pytest.approx([1.5, 6, 24, 96])
    assert line.get_ydata() == pytest.approx([0.905, 0.925, 0.945, 0.965])
    panel = pictures._volumes(subjects).axes[1]
    assert panel.get_title() == "B"
    assert panel.lines[1].get_ydata()[0] == pictures.LEAST


def test_parameters_are_shown_beside_the_papers() -> None:
    runs = [
        {"row": "A", "restart": r, "parameters": 100, "dice_with_background": dice} for r, dice in ((0, 0.8), (1, 0.9))
    ]
    runs += [{"row": "A, 2 together", "restart": None, "parameters": 200, "dice_with_background": 0.9}]
    (axis,) = pictures._by_parameters(pandas.DataFrame(runs)).axes
    ours, theirs = (container.lines[0] for container in axis.containers)
    assert (ours.get_xdata().tolist(), ours.get_ydata().tolist()) == ([100], [pytest.approx(0.85)])
    assert len(theirs.get_xdata()) == 10


def test_two_scans_of_a_subject_are_two_points_and_rho_is_theirs() -> None:
    dice, quality = [0.2, 0.9, 0.5, 0.7], [0.1, 0.8, 0.6, 0.4]  # ranks 1 4 2 3 and 1 4 3 2: rho is 1 - 6 * 2 / 60
    images = [f"{subject}_{session}.nii" for subject in "ab" for session in (1, 2)]
    subjects = pandas.DataFrame({"row": "A, 2 together", "subject": list("aabb"), "image": images, "dice": dice})
    scans = {"subject": list("aabb"), "image": images, "quality": quality, "of": "scan"}
    together = pandas.DataFrame({**scans, "name": "A", "row": "A, 2 together"})
    bins = pandas.DataFrame(
        {"of": ["probability", "uncertainty"], "low": 0.0, "voxels": 10, "mean": 0.1, "lesion": 0.1}
    )
    bins = bins.assign(wrong=0.1, name="A", row="A, 2 together")
    right = pictures._reliability(pandas.concat([bins, together]), subjects).axes[2]
    assert right.lines[0].get_label() == "A (rho 0.80)"
    assert sorted(right.lines[0].get_xdata()) == sorted(quality)
