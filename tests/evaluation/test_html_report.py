"""The report is one page that opens offline, sorts, and shows what the CSV files say."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import EVALUATE, TRAIN, bundle
from ignite.engine import Engine
from monai.data import MetaTensor

from scripts.evaluation.html_report import HtmlReport

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(trained: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation's report, beside the training's history."""
    output = tmp_path_factory.mktemp("report")
    shutil.copy(trained["root"] / "eval" / "history.csv", output)
    arguments = [*trained["arguments"], "--output_dir", output]
    result = bundle("evaluating", "--config_file", f"['{TRAIN}','{EVALUATE}']", *arguments)
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"Report: {output / 'report.html'}" in result.stdout
    return output / "report.html"


def rows_of(page: str) -> list[list[str]]:
    body = re.search(r"<tbody>(.*?)</tbody>", page, re.DOTALL).group(1)
    return [re.findall(r'data-value="([^"]*)"', row) for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)]


def test_subjects_are_those_of_the_table_worst_first(report: Path) -> None:
    with report.with_name("metrics.csv").open() as file:
        metrics = {row["subject"]: row for row in csv.DictReader(file)}
    rows = rows_of(report.read_text())
    assert len(rows) == len(metrics)
    for name, dice, *_ in rows:
        assert float(dice) == pytest.approx(float(metrics[name.split()[0]]["dice"]), abs=1e-5)
    assert [float(row[1]) for row in rows] == sorted(float(row[1]) for row in rows)


def test_volumes_are_those_of_the_masks(report: Path, trained: dict) -> None:
    true = {scan["subject"]: scan["lesion_volume"] / 1000 for scan in trained["scans"]}
    for name, _, avd, _, truth, pred in rows_of(report.read_text()):
        assert float(truth) == pytest.approx(true[name.split()[0]], rel=0.25, abs=5.2)  # resampled: 10 voxels of 8 mm
        assert abs(float(pred) - float(truth)) / float(truth) == pytest.approx(float(avd), rel=1e-3, abs=1e-4)


def test_it_needs_nothing_from_elsewhere(report: Path) -> None:
    page = report.read_text()
    assert page.count("<img") == page.count("src=") == page.count("data:image/")
    assert not re.search(r"(src|href)=.(http|//|/)|@import|url\(", page)
    assert "loss, learning rate and validation DICE over epochs" in page
    assert len(page) < 20_000_000


def test_training_writes_one_of_its_best_validation(trained: dict) -> None:
    page = (trained["root"] / "eval" / "report.html").read_text()
    card = json.loads((trained["root"] / "models" / "model.json").read_text())
    assert "validation on Simulated" in page
    assert f"<td>seed</td><td>{card['seed']}</td>" in page
    best = re.search(r"Best val_mean_dice ([\d.]+) at epoch (\d+)", trained["stdout"])
    assert f"<td>epoch shown</td><td>{best.group(2)}</td>" in page
    dice = [float(row[1]) for row in rows_of(page)]
    assert sum(dice) / len(dice) == pytest.approx(float(best.group(1)), abs=1e-3)


def test_names_cannot_smuggle_html_into_the_page(tmp_path: Path) -> None:
    volume = MetaTensor(torch.rand(1, 9, 9, 9), affine=torch.eye(4))
    mask = MetaTensor((volume.as_tensor() > 0.9).float(), affine=torch.eye(4))
    engine = Engine(lambda engine, batch: [{"pred": torch.cat([1 - mask, mask])}])
    scans = [{"subject": "<script>alert(1)</script>"}]
    report = HtmlReport([{"image": volume, "label": mask}], scans, {"dice": "d"}, str(tmp_path), "A & B", {})
    engine.state.metric_details = {"d": torch.tensor([[1.0]])}
    report.attach(engine)
    engine.add_event_handler("STARTED", lambda: setattr(engine.state, "metric_details", {"d": torch.tensor([[1.0]])}))
    engine.run([0])
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "A &amp; B" in page


def open_page(page: Path, *arguments: str) -> subprocess.CompletedProcess:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--disable-quic", "--virtual-time-budget=5000"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    command = [CHROMIUM, *options, profile, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
@pytest.mark.parametrize(("clicks", "reverse"), [(1, False), (2, True)])
def test_in_a_browser_it_loads_without_errors_and_a_click_sorts(
    report: Path, tmp_path: Path, clicks: int, reverse: bool
) -> None:
    page = report.read_text()
    watch = "<script>onerror = (m) => document.documentElement.dataset.error = m</script>"
    click = "<script>" + "document.querySelector('th[data-key=pred]').click();" * clicks + "</script>"
    copy = tmp_path / "report.html"
    copy.write_text(page.replace("<head>", f"<head>{watch}").replace("</body>", f"{click}</body>"))
    result = open_page(copy, "--dump-dom")
    assert result.returncode == 0, result.stderr
    assert "data-error" not in result.stdout.split(">")[1]
    volumes = [float(row[-1]) for row in rows_of(result.stdout)]
    assert volumes == sorted(volumes, reverse=reverse)
    assert len(volumes) == len(rows_of(page))
    assert volumes != [float(row[-1]) for row in rows_of(page)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_in_a_browser_it_shows_its_pictures(report: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    shot = tmp_path / "shot.png"
    result = open_page(report, f"--screenshot={shot}", "--window-size=1000,2400", "--hide-scrollbars")
    assert result.returncode == 0, result.stderr
    pixels = imread(shot)[..., :3]
    assert (pixels.min(2) > 0.95).mean() < 0.95  # not a blank page
    assert ((pixels[..., 0] > 0.8) & (pixels[..., 1] < 0.3) & (pixels[..., 2] < 0.3)).sum() > 50  # red outlines
