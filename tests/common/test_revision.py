"""A revision is of all the code that is involved, and of nothing else."""

from pathlib import Path

import pytest
from conftest import ROOT

from scripts.common.revision import revision

SIMULATION = ROOT / "scripts" / "simulation"


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        (SIMULATION / "cohort.py", True),
        (SIMULATION / "scanner.py", True),  # imported
        (SIMULATION / "ranges.json", True),  # beside it
        (SIMULATION / "dataset.py", False),  # not imported
        (ROOT / "scripts" / "common" / "errors.py", False),  # of another package
    ],
)
def test_a_changed_file_is_another_revision(path: Path, counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = revision.__wrapped__
    before, read = compute("scripts.simulation.cohort.simulate_cohort", "scripts.simulation"), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self: read(self) + " " * (self == path))
    after = compute("scripts.simulation.cohort.simulate_cohort", "scripts.simulation")
    assert (after != before) is counts
    assert len(after) == 8
