"""The report is one page that opens offline, sorts, and shows what the CSV files say."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import default_metric_cmp_fn

from scripts.evaluation.html_report import HtmlReport

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(evaluated: tuple[Path, str]) -> Path:
    """An evaluation's report, beside the training's history."""
    assert f"Report: {evaluated[0] / 'report.html'}" in evaluated[1]
    return evaluated[0] / "report.html"


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
    for name, _, avd, *_, truth, pred in rows_of(report.read_text()):
        assert float(truth) == pytest.approx(true[name.split()[0]], rel=0.25, abs=5.2)  # resampled: 10 voxels of 8 mm
        assert abs(float(pred) - float(truth)) / float(truth) == pytest.approx(float(avd), rel=1e-3, abs=1e-4)


def test_it_needs_nothing_from_elsewhere(report: Path) -> None:
    page = report.read_text()
    assert page.count("<img") == page.count("src=") == page.count("data:image/")
    assert not re.search(r"(src|href)=.(http|//|/)|@import|url\(", page)
    assert "loss, learning rate and validation metrics over epochs" in page
    assert len(page) < 20_000_000


def test_training_writes_one_of_its_best_validation(trained: dict) -> None:
    page = (trained["root"] / "eval" / "report.html").read_text()
    assert "validation on Simulated" in page
    assert "<td>channels</td><td>8</td>" in page  # what differs from the shipped recipe
    best = re.search(r"Best val_mean_dice ([\d.]+) at epoch (\d+)", trained["stdout"])
    assert f"<td>epoch shown</td><td>{best.group(2)}</td>" in page
    dice = [float(row[1]) for row in rows_of(page)]
    assert sum(dice) / len(dice) == pytest.approx(float(best.group(1)), abs=1e-3)


class Run:
    """A trainer that validates one scan each epoch, with the DICE of ``dices`` and a mask of 100 voxels times that."""

    def __init__(self, folder: Path, dices: list[float], subject: str = "S1", wanted: bool = True) -> None:
        self.folder, self.dices = folder, dices
        image = MetaTensor(torch.linspace(0, 1, 1000).reshape(1, 10, 10, 10), affine=torch.eye(4))
        item, scans = {"image": image, "label": (image > 0.5).float()}, [{"subject": subject}] if wanted else []
        self.trainer, self.evaluator = Engine(lambda engine, batch: None), Engine(self.predict)
        self.evaluator.metric_cmp_fn = default_metric_cmp_fn
        state = self.evaluator.state
        state.best_metric, state.best_metric_epoch, state.key_metric_name = -1, -1, "val_mean_dice"
        HtmlReport([item], scans, str(folder), "A & B", {"seed": 3}, self.evaluator).attach(self.trainer)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.measure)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)

    def predict(self, engine: Engine, batch: object) -> list[dict]:
        lesion = torch.arange(1000).reshape(1, 10, 10, 10) < 100 * self.dices[self.trainer.state.epoch - 1]
        return [{"pred": torch.cat([~lesion, lesion]).float()}]

    def validate(self) -> None:
        self.evaluator.state.epoch = self.trainer.state.epoch - 1
        self.evaluator.run([0], max_epochs=self.trainer.state.epoch)

    def measure(self) -> None:
        state, dice = self.evaluator.state, self.dices[self.trainer.state.epoch - 1]
        state.metric_details = {"val_mean_dice": torch.tensor([[dice]])}
        if dice > state.best_metric:
            state.best_metric, state.best_metric_epoch = dice, self.trainer.state.epoch

    def save(self) -> None:
        best = {key: getattr(self.evaluator.state, key) for key in ("best_metric", "best_metric_epoch")}
        torch.save({"trainer": dict(self.trainer.state_dict()), "best": best}, self.folder / "state.pt")

    def resume(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.trainer.load_state_dict({**state["trainer"], "max_epochs": len(self.dices)})
        for key, value in state["best"].items():
            setattr(self.evaluator.state, key, value)

    def page(self, epochs: int) -> str:
        self.trainer.run([0], max_epochs=epochs)
        return (self.folder / "report.html").read_text() if (self.folder / "report.html").is_file() else ""


DICES = [0.2, 0.9, 0.4, 0.3]


@pytest.mark.parametrize("killed_after", [1, 3])
def test_after_a_resume_it_shows_the_best_validation_wherever_that_was(tmp_path: Path, killed_after: int) -> None:
    first = Run(tmp_path, DICES)
    first.page(killed_after)
    first.save()
    (tmp_path / "report.html").unlink()
    second = Run(tmp_path, DICES)
    second.resume()
    page = second.page(len(DICES))
    assert "<td>epoch shown</td><td>2</td>" in page
    assert rows_of(page) == [["S1", "0.8999999761581421", "0.5", "0.09"]]  # 500 and 90 voxels of 1 mm3


def test_a_report_that_is_wanted_only_after_a_resume_says_that_it_is_not_of_the_best(tmp_path: Path) -> None:
    first = Run(tmp_path, DICES, wanted=False)
    assert first.page(2) == ""
    first.save()
    second = Run(tmp_path, DICES)
    second.resume()
    page = second.page(len(DICES))
    assert "<td>epoch shown</td><td>3</td>" in page
    assert "<td>best epoch</td><td>2, before a report was asked for</td>" in page


def test_names_cannot_smuggle_html_into_the_page(tmp_path: Path) -> None:
    page = Run(tmp_path, [0.5], "<script>alert(1)</script>").page(1)
    assert "<script>alert(1)" not in page
    assert "A &amp; B" in page


def test_an_undefined_value_is_a_dash(tmp_path: Path) -> None:
    page = Run(tmp_path, [float("nan")]).page(1)
    assert page.count(">\u2013<") == 2  # the subject's and the mean
    assert "dice \u2013, 0.5 mL" in page


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
    assert len(set(volumes)) > 1  # so without a click they would be in one of both orders at most


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_in_a_browser_it_shows_its_pictures(report: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    shot = tmp_path / "shot.png"
    result = open_page(report, f"--screenshot={shot}", "--window-size=1000,2400", "--hide-scrollbars")
    assert result.returncode == 0, result.stderr
    pixels = imread(shot)[..., :3]
    assert (pixels.min(2) > 0.95).mean() < 0.95  # not a blank page
    assert ((pixels[..., 0] > 0.8) & (pixels[..., 1] < 0.3) & (pixels[..., 2] < 0.3)).sum() > 50  # red outlines
