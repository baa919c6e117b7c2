"""The repository is a Model Zoo bundle and holds nothing else."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from durations import TABLE, takes_long

ROOT = Path(__file__).resolve().parents[1]


def tracked() -> list[str]:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return result.stdout.splitlines()


def test_top_level_holds_a_bundle_and_nothing_else() -> None:
    allowed = {
        "configs",
        "models",
        "scripts",
        "docs",
        "tests",
        "LICENSE",
        "metadata.json",
        "README.md",
        "requirements.txt",
    }
    assert {path.split("/")[0] for path in tracked() if not path.startswith(".")} <= allowed


def test_no_volume_checkpoint_cache_or_large_file_is_tracked() -> None:
    for path in tracked():
        assert not re.search(r"\.(nii|nii\.gz|pyc|csv|db|log|tmp)$|__pycache__|^(data|eval)/", path), path
        assert not path.endswith(".pt") or path.startswith("models/"), path
        assert (ROOT / path).stat().st_size < 1_000_000, path


def test_the_default_run_leaves_the_checkout_clean() -> None:
    ignored = ["data/simulated/datalist.json", "eval/history.csv", "eval/model.pt", "models/model.onnx"]
    result = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 128 or result.stdout.split() == ignored


def test_configs_metadata_is_a_copy_of_the_top_level_one() -> None:
    """MONAI reads it there, and a clone on Windows or an unpacked zip has no links."""
    assert (ROOT / "configs" / "metadata.json").read_bytes() == (ROOT / "metadata.json").read_bytes()


def test_no_file_is_a_link() -> None:
    assert [path for path in tracked() if (ROOT / path).is_symlink()] == []


def test_metadata_describes_this_version() -> None:
    metadata = json.loads((ROOT / "metadata.json").read_text())
    assert metadata["version"] == next(iter(metadata["changelog"]))
    requirements = (ROOT / "requirements.txt").read_text()
    assert f"torch=={metadata['pytorch_version']}\n" in requirements
    assert f"monai=={metadata['monai_version']}\n" in requirements
    network = metadata["network_data_format"]
    assert network["inputs"]["image"]["num_channels"] == 1
    assert network["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "lesion"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.json")), ids=lambda path: path.name)
def test_every_class_a_config_names_exists(path: Path) -> None:
    targets = re.findall(r"""["']scripts\.([\w.]+)\.(\w+)["']""", path.read_text())
    for module, name in targets:
        code = (ROOT / "scripts" / f"{module.replace('.', '/')}.py").read_text()
        assert re.search(rf"^(class|def) {name}\b", code, re.MULTILINE)


def test_no_line_of_a_config_is_over_120_characters() -> None:
    paths = [ROOT / "metadata.json", *(ROOT / "configs").rglob("*.json")]
    assert [(path.name, line) for path in paths for line in path.read_text().splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*/[a-z]*.py")), ids=lambda path: path.name)
def test_every_file_says_what_it_does_and_has_its_tests_in_the_room_of_its_name(path: Path) -> None:
    assert path.read_text().startswith('"""')
    assert (ROOT / "tests" / path.parent.name / f"test_{path.name}").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("[a-z]*.py")), ids=lambda path: path.name)
def test_a_command_is_at_most_60_lines_and_is_in_the_list_of_commands(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60
    assert path.name == "import_brainchop.py" or f"scripts/{path.name} " in (ROOT / "docs" / "README.md").read_text()


def test_a_test_that_takes_over_three_seconds_is_marked_slow_or_kept(request: pytest.FixtureRequest) -> None:
    table, tests = json.loads(TABLE.read_text()), request.config.collected
    marked = {test.nodeid for test in tests if {"slow", "kept"} & {mark.name for mark in test.iter_markers()}}
    assert {test.nodeid for test in tests if takes_long(test, table)} - marked == set()
    assert not [test.nodeid for test in tests if {"slow", "kept"} <= {mark.name for mark in test.iter_markers()}]


def test_the_durations_are_of_tests_that_there_are(request: pytest.FixtureRequest) -> None:
    names = {test.nodeid for test in request.config.collected}
    files = {name.split("::")[0] for name in names}
    recorded = {name for name in json.loads(TABLE.read_text())["tests"] if name.split("::")[0] in files}
    if len(names) > 100:  # not one test by its name
        assert recorded - names == set()


ROOMS = [
    "common",
    "networks",
    "data",
    "execution",
    "weights",
    "training",
    "techniques",
    "evaluation",
    "inference",
    "search",
    "comparison",
    "simulation",
]
ROOMS = [*ROOMS, "group", "sharing", "browser", "benchmarking"]  # from the ground up


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*/*.py")), ids=lambda path: str(path))
def test_a_room_imports_only_from_itself_and_from_rooms_below_it(path: Path) -> None:
    own = ROOMS.index(path.parent.name)
    imported = re.findall(r"^\s*(?:from|import) scripts\.(\w+)", path.read_text(), re.MULTILINE)
    assert set(imported) <= set(ROOMS[: own + 1])


PAGES = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "models" / "README.md", ROOT / "README.md"]
RECORDS = sorted(ROOT.glob("docs/experiments/*.json"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_the_docs_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        page, _, anchor = link.partition("#")
        if not link.startswith("http"):
            target = path.parent / page if page else path
            assert target.exists(), link
            assert not anchor or anchor in _anchors(target.read_text()), link


def test_a_heading_is_linked_to_as_github_writes_it() -> None:
    text = "# A page\n\n## What is refused, and why?\n```bash\n# no heading\n```\n### `loss_name`\n"
    assert _anchors(text) == {"a-page", "what-is-refused-and-why", "loss_name"}


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/experiments/*.md")), ids=lambda path: path.name)
def test_an_experiment_is_told_in_300_words_and_links_to_its_json(path: Path) -> None:
    text = path.read_text()
    assert len(text.split()) <= 300
    assert not path.with_suffix(".json").exists() or f"({path.stem}.json)" in text


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_the_figures_of_an_experiment_are_those_of_the_json_beside_it(record: Path) -> None:
    """Each row of the page's table has only numbers that one entry of the JSON has."""
    entries = [set(_numbers(" ".join(map(str, entry.values())))) for entry in json.loads(record.read_text())]
    (table,) = re.findall(r"^\|[-|]+\|\n((?:\|.*\n)+)", record.with_suffix(".md").read_text(), re.MULTILINE)
    rows = table.splitlines()
    assert len(rows) > 2
    assert [row for row in rows if not any(set(_numbers(row)) <= entry for entry in entries)] == []


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text.replace(",", ""))]
