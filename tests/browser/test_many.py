"""Many scans in one tab: each with its settings, kept compressed and beyond the tab, saved as one derivative."""

import json
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
import pytest
from browser.chromium import Chromium
from nibabel.processing import resample_from_to

from scripts.data.datalist import prepare_datalist
from scripts.group.table import rows_of

DONE = "!document.querySelector('#result').hidden && document.querySelector('#work').hidden"
READY = f"{DONE} && !document.querySelector('#threshold').disabled"
BLIND = ("--disable-gpu", "--disable-software-rasterizer")  # nothing is drawn, so that only segmenting takes time


@pytest.fixture
def page(start: Callable, address: str) -> Chromium:
    """The page in a browser of its own, which says yes to what it is asked."""
    browser = start((500, 600), False, *BLIND)
    browser.open(address)
    browser.wait_for("document.body?.dataset.offline")
    browser.ask("window.confirm = () => true")
    return browser


def slide(page: Chromium, slider: str, value: float) -> None:
    page.ask(f"(s => {{ s.value = {value}; s.oninput() }})(document.querySelector('#{slider}'))")


def show(page: Chromium, name: str) -> None:
    """Click on a scan in the list, and wait for its mask."""
    item = f"[...document.querySelectorAll('#list button')].find((e) => e.textContent.startsWith({json.dumps(name)}))"
    page.ask(f"{item}.click()")
    page.wait_for(f"{item}.getAttribute('aria-current') == 'true' && !document.querySelector('#threshold').disabled")


def table(page: Chromium) -> pandas.DataFrame:
    return pandas.read_csv(page.download("#saveTable", "lesions.tsv"), sep="\t", index_col="scan")


@pytest.mark.slow
def test_each_scan_keeps_the_settings_that_it_was_given(page: Chromium, scans: Path) -> None:
    page.drop(scans / "sagittal.nii.gz")
    page.wait_for(READY)
    slide(page, "threshold", 0.9)
    slide(page, "minVolume", 0)
    before = table(page)
    assert before.threshold.tolist() == [0.9]
    page.drop(scans / "lia.nii")
    page.wait_for(f"{READY} && document.querySelectorAll('#list .done').length == 2")
    for name in ("sagittal.nii.gz", "lia.nii"):
        show(page, name)
    after = table(page)
    assert after.loc["sagittal.nii.gz"].equals(before.loc["sagittal.nii.gz"])
    assert after.loc["lia.nii", ["threshold", "min_volume"]].tolist() == [0.6, 1000]
    show(page, "sagittal.nii.gz")
    assert page.text("#thresholdShown") == "0.90"


@pytest.mark.slow
def test_one_looks_at_finished_scans_while_others_are_computed(page: Chromium, scans: Path) -> None:
    page.drop(scans / "sagittal.nii.gz")
    page.wait_for(READY)
    volume = page.text("#volume")
    others = [scan for scan in sorted(scans.iterdir()) if not scan.name.startswith(("sagittal", "M2265"))]
    page.drop(*others)
    page.wait_for(f"document.querySelectorAll('#list li').length == {len(others) + 1}")  # a drop is read first
    show(page, "sagittal.nii.gz")
    slide(page, "threshold", 0.9)
    page.wait_for(f"document.querySelector('#volume').textContent != {json.dumps(volume)}")
    assert page.ask("document.querySelectorAll('#list .waiting').length") > 0
    page.wait_for(f"document.querySelectorAll('#list .done').length == {len(others) + 1}")
    assert page.text("#list [aria-current=true]").startswith("sagittal")
    assert table(page).threshold.tolist() == [0.9, *([0.6] * len(others))]


@pytest.mark.slow
def test_all_is_saved_as_one_derivative(page: Chromium, scans: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = [f"sub-{i}/ses-1/anat/sub-{i}_ses-1_T2w.nii.gz" for i in range(1, 8)]
    for name in names:
        (data / name).parent.mkdir(parents=True)
        (data / name).write_bytes((scans / "sagittal.nii.gz").read_bytes())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "=1_T2w.nii.gz").write_bytes((scans / "plain_T2w.nii.gz").read_bytes())
    (tmp_path / "sub-1_ses-1_T2w.nii.gz").write_bytes((scans / "lia.nii").read_bytes())  # another of that name
    page.drop(*(data / name for name in names), tmp_path / "other" / "=1_T2w.nii.gz")
    page.drop(tmp_path / "sub-1_ses-1_T2w.nii.gz")
    page.wait_for("document.querySelectorAll('#list .done').length == 9")
    masks = data / "derivatives" / "page"
    with zipfile.ZipFile(page.download("#saveAll", "lesions.zip")) as file:
        assert file.testzip() is None
        file.extractall(masks)
    found = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.nii.gz"))
    expected = [name.replace("T2w", "desc-lesion_mask") for name in names]
    assert found == sorted([*expected, "=1_desc-lesion_mask.nii.gz", f"2/{expected[0]}"])
    saved = pandas.read_csv(masks / "lesions.tsv", sep="\t")
    assert sorted(name.removeprefix("./") for name in saved["mask"]) == found
    for name, volume in zip(saved["mask"], saved.lesion_volume, strict=True):
        mask = nib.load(masks / name)
        assert np.count_nonzero(mask.dataobj) * abs(np.linalg.det(mask.affine)) == pytest.approx(volume, rel=1e-6)
    (masks / f"2/{expected[0]}").unlink()  # of two masks of a scan, people choose
    datalist = json.loads(Path(prepare_datalist(str(data), labels="derivatives/page")).read_text())
    assert [scan["label"] for scan in datalist["training"]] == [f"derivatives/page/{name}" for name in expected]
    rows = rows_of(masks, None)
    assert {row["changed_by_hand"] for row in rows} == {"false"}
    assert {row["scan"] for row in rows} == {f"bids:raw:{name}" for name in [*names, "=1_T2w.nii.gz"]}


@pytest.mark.slow
def test_what_was_finished_is_offered_again_until_it_is_deleted(page: Chromium, address: str, scans: Path) -> None:
    page.drop(scans / "sagittal.nii.gz", scans / "bigendian.nii")
    page.wait_for(f"{READY} && document.querySelectorAll('#list .done').length == 2")
    slide(page, "threshold", 0.8)
    before = table(page)
    assert "until you delete them" in page.text("#kept")
    page.wait_for("document.querySelector('#reopen').hidden && !document.querySelector('#kept').hidden")
    page.open(address)
    page.wait_for("!document.querySelector('#reopen').hidden")
    assert page.text("#reopen") == "Open 2 finished before"
    assert page.text("#list") == ""
    page.click("#reopen")
    page.wait_for(READY)
    after = table(page)
    pandas.testing.assert_frame_equal(after.sort_index(), before.sort_index())
    show(page, "sagittal.nii.gz")
    slide(page, "threshold", 0.6)  # from the probability that was kept
    page.ask("window.confirm = () => true")
    page.click("#forget")
    page.wait_for("document.querySelector('#kept').hidden && !document.querySelector('#list').textContent")
    page.open(address)
    page.ask("new Promise((resolve) => setTimeout(resolve, 500))")
    assert page.ask("document.querySelector('#kept').hidden")
    assert page.ask("import('./idb-keyval.js').then(({ keys }) => keys())") == []


def memory(page: Chromium) -> float:
    """MB of the browser's processes, what they share counted once, after garbage was collected."""
    page.call("HeapProfiler.collectGarbage")
    time.sleep(1)
    processes, total = [str(page.process.pid)], 0
    for process in processes:
        try:
            processes += Path(f"/proc/{process}/task/{process}/children").read_text().split()
            total += int(re.search(r"Pss: +(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text())[1])
        except OSError:
            continue  # it has ended
    return total / 1000


@pytest.mark.slow
def test_forty_scans_do_not_fill_the_memory(page: Chromium, head: nib.Nifti1Image, tmp_path: Path) -> None:
    """A mask is 2 MB and its probability 8 MB, so that forty of both, were they kept as they are, would be 400 MB."""
    shape = (128, 128, 128)
    scan = resample_from_to(head, (shape, nib.affines.rescale_affine(head.affine, head.shape, (1.9,) * 3, shape)))
    data = scan.get_fdata() + np.random.default_rng(0).normal(0, 10, scan.shape)
    names = [tmp_path / f"sub-{i:02d}_T2w.nii" for i in range(44)]
    for name in names:
        nib.save(nib.Nifti1Image(data.astype(np.int16), scan.affine), name)
    page.drop(*names[:4])
    page.wait_for("document.querySelectorAll('#list .done').length == 4")
    before = memory(page)
    page.drop(*names[4:])
    page.wait_for("document.querySelectorAll('#list .done').length == 44", 600)
    after = memory(page)
    print(f"{before:.0f} MB after 4 scans, {after:.0f} MB after 44")
    assert after - before < 100
    assert table(page).lesion_volume.nunique() == 1
