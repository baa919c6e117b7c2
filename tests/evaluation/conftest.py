"""One evaluation of the small network, in the process of its own that a user starts, for all tests of this room."""

import shutil
from pathlib import Path

import pytest
from conftest import EVALUATE, TRAIN, bundle


@pytest.fixture(scope="session")
def evaluated(trained: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the results, in which the training's history lies too, and what was printed."""
    output = tmp_path_factory.mktemp("evaluated")
    shutil.copy(trained["root"] / "eval" / "history.csv", output)
    arguments = [*trained["arguments"], "--output_dir", output]
    result = bundle("evaluating", "--config_file", f"['{TRAIN}','{EVALUATE}']", *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    return output, result.stdout
