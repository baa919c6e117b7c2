"""The page in a real browser: what is dropped on it, what it shows, and what it gives."""

import base64
import gzip
import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas
import pytest
from browser.chromium import Chromium
from browser.conftest import PATIENT
from conftest import ROOT, write

from scripts.browser import site as building
from scripts.browser.site import build_site
from scripts.common.errors import InputError

DONE = "!document.querySelector('#result').hidden && document.querySelector('#work').hidden"
DONE += " && !document.querySelector('#threshold').disabled"
ITEM = "[...document.querySelectorAll('#list button')].findLast((item) => item.textContent.startsWith({}))"


def segment(page: Chromium, *files: Path) -> None:
    """Drop files, and wait for their masks."""
    page.drop(*files)
    page.wait_for(f"{DONE} && !document.querySelector('#list .waiting')")


def refused(page: Chromium, file: Path) -> str:
    """Drop a file that cannot be segmented; what the page says."""
    page.drop(file)
    name = json.dumps(f"{file.name}: ")
    return page.wait_for(f"document.querySelector('#error').textContent.split({name})[1]")


@pytest.mark.slow
def test_all_kinds_of_scans_get_the_masks_of_inference(
    start: Callable, address: str, scans: Path, inferred: Path
) -> None:
    """In a browser that cannot draw (no WebGL), so that only segmenting takes time."""
    page = start((500, 600), False, "--disable-gpu", "--disable-software-rasterizer")
    page.open(address)
    files = sorted(scans.iterdir())
    page.drop(*files)
    page.wait_for("document.querySelectorAll('#list .done').length == " + str(len(files)), 300)
    cores = page.ask("navigator.hardwareConcurrency")
    assert page.text("#engine") == f"Computed by WebAssembly, {cores} thread{'s' * (cores > 1)}."
    ours = pandas.read_csv(page.download("#saveTable", "lesions.tsv"), sep="\t", index_col="mask")
    theirs = pandas.read_csv(inferred / "lesions.tsv", sep="\t", index_col="mask")
    assert theirs.norm_adaptation[theirs.norm_adaptation > 0].to_dict() == {"darker_desc-lesion_mask.nii.gz": 0.2}
    for file in files:
        item = ITEM.format(json.dumps(file.name))
        page.ask(f"{item}.click()")
        page.wait_for(f"{item}.getAttribute('aria-current') == 'true' && {DONE}")
        name = file.name.split(".")[0].removesuffix("_T2w") + "_desc-lesion_mask.nii.gz"
        saved, expected = nib.load(page.download("#save", name)), nib.load(inferred / name)
        mask, truth = np.asarray(saved.dataobj) > 0, np.asarray(expected.dataobj) > 0
        assert truth.sum() > 100, file.name
        assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) >= 0.999, file.name
        np.testing.assert_allclose(saved.affine, nib.load(file).affine, atol=1e-5, err_msg=file.name)
        np.testing.assert_allclose(saved.affine, expected.affine, atol=1e-4, err_msg=file.name)
        assert saved.get_data_dtype() == np.uint8, file.name
        assert ours.loc[name].lesions == theirs.loc[name].lesions, file.name
        assert ours.loc[name].lesion_volume == pytest.approx(theirs.loc[name].lesion_volume, rel=2e-3), file.name
        assert ours.loc[name].laterality == pytest.approx(theirs.loc[name].laterality, abs=5e-3), file.name
    if not PATIENT.is_file():
        pytest.skip("the other scans agree; the patient's scan is not here")


@pytest.mark.slow
def test_standardized_intensities_are_a_warning(page: Chromium, scans: Path, tmp_path: Path) -> None:
    head = nib.load(scans / "plain_T2w.nii.gz")
    data = head.get_fdata()
    standardized = np.where(data > 50, (data - data[data > 50].mean()) / data[data > 50].std(), 0).astype(np.float32)
    nib.save(nib.Nifti1Image(standardized, head.affine), tmp_path / "standardized.nii.gz")
    segment(page, tmp_path / "standardized.nii.gz")
    assert page.text("#warning").startswith("its values are standardized, or no MRI")
    segment(page, scans / "plain_T2w.nii.gz")
    assert page.text("#warning") == ""


@pytest.mark.slow
def test_it_asks_no_other_host_and_breaks_no_rule_of_its_own(page: Chromium, address: str, scans: Path) -> None:
    segment(page, scans / "plain_T2w.nii.gz")
    assert [url for url in page.requests if not url.startswith((address, "data:", f"blob:{address}"))] == []
    assert [line for line in page.problems if "Content Security Policy" in line] == []
    assert page.ask("fetch('https://example.com').catch(() => 'refused')") == "refused"
    assert any("Content Security Policy" in line for line in page.problems)  # so it was looked for in the right place


@pytest.mark.kept
def test_the_card_is_in_sight_from_the_first_moment(page: Chromium) -> None:
    shown = page.text("#card")
    assert shown.startswith("Not for clinical use.")
    assert "Trained on simulated lesions." in shown
    assert "5 channels, 64x80x64 voxels of 3x3x3 mm" in shown


@pytest.mark.slow
def test_sliders_change_the_mask_without_another_run(page: Chromium, scans: Path) -> None:
    segment(page, scans / "plain_T2w.nii.gz")

    def volume(slider: str, value: float) -> float:
        page.ask("document.querySelector('#volume').textContent = ''")
        page.ask(f"(s => {{ s.value = {value}; s.oninput() }})(document.querySelector('#{slider}'))")
        return float(page.wait_for("document.querySelector('#volume').textContent", 5).split()[0])

    likely, strict, loose = (volume("threshold", value) for value in (0.4, 0.9, 0.05))
    assert strict < likely < loose
    assert page.ask("document.querySelector('#work').hidden")
    volume("threshold", 0.4)
    assert volume("minVolume", 5000) <= likely
    page.ask("document.querySelector('#minVolume').value = 1000")


@pytest.mark.slow
def test_a_mask_that_comes_late_is_not_taken_for_that_of_the_next_scan(start: Callable, address: str) -> None:
    page = start()
    page.open(address)
    page.click("#example")
    page.wait_for(DONE)
    shown = page.text("#list .done")
    page.ask("""(async () => {
        const bytes = await (await fetch('example_T2w.nii.gz')).arrayBuffer(), files = new DataTransfer()
        files.items.add(new File(['no scan'], 'broken.nii.gz'))
        files.items.add(new File([bytes], 'again.nii.gz'))
        const slider = document.querySelector('#minVolume'), input = document.querySelector('#files')
        slider.value = slider.max
        slider.dispatchEvent(new Event('input'))
        slider.value = 0
        input.files = files.files
        input.dispatchEvent(new Event('change'))
    })()""")
    page.wait_for("document.querySelectorAll('#list .done').length === 2 && document.querySelector('#work').hidden")
    states = page.ask("[...document.querySelectorAll('#list button')].map((one) => one.lastChild.className)")
    assert states == ["done", "failed", "done"]
    assert page.text("#list li:last-child .done") == shown
    saved = pandas.read_csv(page.download("#saveTable", "lesions.tsv"), sep="\t")
    assert saved.min_volume.tolist() == [5000, 1000]  # of the scan in view when the slider was moved, and the card's


@pytest.mark.slow
def test_it_works_without_a_network_once_loaded(start: Callable, site: Path, scans: Path) -> None:
    import threading

    from scripts.browser.serve import server_of

    page, server = start(), server_of(str(site), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page.open(f"http://localhost:{server.server_port}/")
    page.wait_for("document.body?.dataset.offline")
    server.shutdown()
    server.server_close()
    page.open(f"http://localhost:{server.server_port}/")
    segment(page, scans / "plain_T2w.nii.gz")
    assert page.ask("crossOriginIsolated")


@pytest.mark.slow
def test_a_plain_host_without_headers_gets_its_threads_by_the_service_worker(start: Callable, site: Path) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    plain = type("Plain", (SimpleHTTPRequestHandler,), {"log_message": lambda *args: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(plain, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = start()
        page.open(f"http://localhost:{server.server_port}/")
        page.wait_for("window.crossOriginIsolated && document.body?.dataset.offline")
        server.shutdown()


@pytest.mark.slow
def test_what_is_no_scan_is_refused_in_words(page: Chromium, tmp_path: Path, head: nib.Nifti1Image) -> None:
    text = tmp_path / "notes.nii"
    text.write_text("this is no scan " * 50)
    assert refused(page, text) == "it is not a NIfTI file (.nii or .nii.gz)."
    four = tmp_path / "bold.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 7), np.int16), np.eye(4)), four)
    assert refused(page, four) == "it has 4 dimensions (4x5x6x7), expected 3; give one volume."
    whole = write(tmp_path / "whole.nii").read_bytes()
    (tmp_path / "half.nii").write_bytes(whole[: len(whole) // 2])
    assert refused(page, tmp_path / "half.nii") == "it ends early: the file is not whole."
    packed = bytearray(gzip.compress(whole))
    packed[len(packed) // 2] ^= 255
    (tmp_path / "broken.nii.gz").write_bytes(packed)
    assert "broken" in refused(page, tmp_path / "broken.nii.gz")
    write(tmp_path / "flat.nii", np.full((24, 30, 20), 7, np.float32))
    assert refused(page, tmp_path / "flat.nii") == "every voxel is 7; is this the right file?."
    thin = bytearray(whole)
    struct.pack_into("<4f", thin, 312, 0, 0, 0, 0)  # the sform's last row
    (tmp_path / "thin.nii").write_bytes(thin)
    assert "its affine is not one of a scan" in refused(page, tmp_path / "thin.nii")


@pytest.mark.slow
def test_gzip_of_several_members_and_with_zeros_behind_is_read(page: Chromium) -> None:
    data = np.random.default_rng(0).integers(0, 900, (48, 60, 48)).astype(np.int16)
    raw = nib.Nifti1Image(data, np.diag([4, 4, 4, 1])).to_bytes()
    blocks, whole = [gzip.compress(raw[i : i + 65280]) for i in range(0, len(raw), 65280)], gzip.compress(raw)
    assert whole[-1] == 0  # the last byte of its length, which is no padding
    files = {
        "one": whole,
        "zeros": whole + bytes(10240),
        "blocks": b"".join(blocks),
        "both": b"".join([*blocks, bytes(512)]),
    }
    files |= {"between": blocks[0] + bytes(20) + b"".join(blocks[1:]), "broken": b"".join(blocks[:2]) + blocks[2][:-9]}
    given = json.dumps({name: base64.b64encode(content).decode() for name, content in files.items()})
    found = page.ask(
        f"""import('./nifti.js').then(async ({{ readNifti }}) => {{
        const sums = {{}}
        for (const [name, text] of Object.entries({given})) {{
          const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))
          sums[name] = await readNifti(new Blob([bytes])).then(
            ({{ values }}) => values.reduce((sum, value) => sum + value, 0), (error) => error.message)
        }}
        return sums
        }})"""
    )
    assert found.pop("broken") == "its compressed data are broken"
    assert found == dict.fromkeys(found, int(data.sum(dtype=np.int64)))


@pytest.mark.slow
def test_a_scan_that_does_not_tell_left_from_right_has_a_volume_but_no_sides(page: Chromium, tmp_path: Path) -> None:
    data = np.zeros((24, 30, 20), np.float32)
    data[2:22, 2:28, 2:18], data[14:18, 8:22, 6:14] = 30, 100
    nib.save(nib.Nifti1Image(data, None), tmp_path / "untold.nii")
    assert nib.load(tmp_path / "untold.nii").get_sform(coded=True)[1] == 0
    segment(page, tmp_path / "untold.nii")
    assert (page.text("#onLeft"), page.text("#onRight")) == ("n/a", "n/a")
    assert page.text("#volume").endswith(" mL")
    assert "left and right" in page.text("#warning")


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(page: Chromium, tmp_path: Path) -> None:
    header = bytearray(write(tmp_path / "scan.nii").read_bytes()[:352])
    struct.pack_into("<4h", header, 40, 3, 30000, 30000, 30000)
    (tmp_path / "large.nii.gz").write_bytes(gzip.compress(bytes(header) + bytes(1000)))
    assert "its header says 30000x30000x30000 voxels, more than" in refused(page, tmp_path / "large.nii.gz")
    small = (tmp_path / "scan.nii").read_bytes()
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(small + bytes(2**28)))
    began = time.monotonic()
    assert refused(page, tmp_path / "bomb.nii.gz") == "it holds more data than its header says; refused."
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_name_is_never_taken_for_markup(page: Chromium, tmp_path: Path, scans: Path) -> None:
    name = "<img src=x onerror=document.title='taken'>.nii"
    (tmp_path / name).write_bytes((scans / "bigendian.nii").read_bytes())
    segment(page, tmp_path / name)
    assert page.ask("document.querySelectorAll('#controls img').length") == 0
    assert name in page.text("#list")
    assert page.ask("document.title") != "taken"
    (tmp_path / "=1+1.nii").write_text("no scan")
    assert "it is not a NIfTI file" in refused(page, tmp_path / "=1+1.nii")
    saved = pandas.read_csv(page.download("#saveTable", "lesions.tsv"), sep="\t")
    assert saved.scan.iloc[-1] == name


@pytest.mark.slow
def test_cancel_stops_at_once_and_the_next_scan_is_segmented(page: Chromium, scans: Path) -> None:
    page.drop(scans / "lia.nii")
    page.wait_for("document.querySelector('#step').textContent.includes('Segmenting')", 30)
    began = time.monotonic()
    page.click("#cancel")
    assert page.text("#warning") == "Cancelled."
    assert page.ask("document.querySelector('#work').hidden")
    assert time.monotonic() - began < 1
    segment(page, scans / "plain_T2w.nii.gz")


@pytest.mark.slow
def test_the_example_is_found_to_have_a_lesion(page: Chromium) -> None:
    page.click("#example")
    page.wait_for(f"{DONE} && document.querySelector('#list li:last-child').textContent.startsWith('example')")
    assert float(page.text("#volume").split()[0]) > 5


@pytest.mark.slow
def test_everything_is_labelled_and_fits_a_phone(page: Chromium) -> None:
    page.resize(360, 740)
    unnamed = "[...document.querySelectorAll('input, select, canvas, progress, button')].filter((e) => " + (
        "!(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.id)"
    )
    assert page.ask(unnamed) == []
    assert page.ask("document.documentElement.scrollWidth") <= 360
    page.resize(1280, 800)


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_aa_asks_for(page: Chromium, dark: bool) -> None:
    page.resize(1280, 800, dark)
    colours = page.ask("""(() => {
        const paint = document.createElement('canvas').getContext('2d')
        const rgb = (colour) => {
            paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1)
            return [...paint.getImageData(0, 0, 1, 1).data]
        }
        const behind = (e) => {
            for (; e; e = e.parentElement) {
                const colour = rgb(getComputedStyle(e).backgroundColor)
                if (colour[3]) return colour
            }
            return [255, 255, 255, 255]
        }
        return [...document.querySelectorAll('body *')].filter((e) => [...e.childNodes].some((n) => n.nodeType == 3
            && n.textContent.trim())).map((e) => [e.id || e.tagName, rgb(getComputedStyle(e).color), behind(e)])
    })()""")

    def luminance(colour: list) -> float:
        shares = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
        return float(np.dot(shares, (0.2126, 0.7152, 0.0722)))

    page.resize(1280, 800)
    assert len(colours) > 15
    for name, text, behind in colours:
        low, high = sorted((luminance(text), luminance(behind)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, text, behind)


@pytest.mark.slow
def test_axe_finds_no_barrier(page: Chromium, scans: Path, tmp_path: Path) -> None:
    npm = [shutil.which("npm"), "install", "axe-core@4.14.1", "--ignore-scripts", "--no-audit", "--no-fund"]
    if subprocess.run(npm, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("npm cannot reach its registry")
    segment(page, scans / "plain_T2w.nii.gz")
    page.ask((tmp_path / "node_modules" / "axe-core" / "axe.min.js").read_text())
    rules = json.dumps(["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"])
    for dark in (False, True):
        page.resize(820, 1180, dark)
        found = page.ask(
            f"axe.run({{ runOnly: {rules} }}).then(({{ violations, passes }}) => [violations, passes.length])"
        )
        assert found[0] == []
        assert found[1] > 10
    page.resize(1280, 800)


@pytest.mark.slow
def test_it_weighs_at_most_45_mb_and_has_all_that_it_lists(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.iterdir()) <= 45e6
    listed = json.loads((site / "files.js").read_text().split("self.FILES = ")[1])
    assert all((site / name).is_file() for name in listed)
    assert "MIT" in (site / "licenses.txt").read_text()


def test_a_folder_that_holds_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        build_site(str(tmp_path), str(ROOT / "models" / "model_5.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "text",
    ["", "export const files = []\n", 'self.VERSION = "meshnet-1"\nself.FILES = ["a.js"',
     'self.VERSION = "1"\nself.FILES = ["thesis.txt"]'],
)  # fmt: skip
def test_a_strangers_folder_with_a_file_of_that_name_is_kept(tmp_path: Path, text: str) -> None:
    for name, content in (("thesis.txt", "years of work"), ("files.js", text)):
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="holds something else"):
        build_site(str(tmp_path), str(ROOT / "models" / "model_5.pt"))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_page_is_replaced_only_if_it_holds_nothing_else(tmp_path: Path) -> None:
    for name in ("index.html", "page.js", "service_worker.js", "licenses.txt"):
        (tmp_path / name).write_text(name)
    building.write_list(tmp_path)
    assert building.strangers_in(tmp_path) == []
    (tmp_path / "CNAME").write_text("lesions.example.org")
    (tmp_path / "notes").mkdir()
    assert building.strangers_in(tmp_path) == ["CNAME", "notes"]
    with pytest.raises(InputError, match="holds something else, CNAME"):
        build_site(str(tmp_path), str(ROOT / "models" / "model_5.pt"))


def test_a_page_that_cannot_be_replaced_is_put_back(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("old")
    with pytest.raises(OSError, match="No such file"):
        building.replace_folder(tmp_path / "site", tmp_path / "missing", tmp_path / "old")
    assert (tmp_path / "site" / "index.html").read_text() == "old"


def test_without_npm_it_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="npm: not found; install Node"):
        build_site(str(tmp_path / "site"), str(ROOT / "models" / "model_5.pt"))
    assert list(tmp_path.iterdir()) == []


def test_no_half_page_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = tmp_path / "npm"
    failing.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(building.shutil, "which", lambda name: str(failing))
    with pytest.raises(InputError, match="npm ci: npm error code ENOTFOUND"):
        build_site(str(tmp_path / "site"), str(ROOT / "models" / "model_5.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["npm"]


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "browser_app.py"), "--serve", str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{tmp_path / 'site'}: no page there; make it with: ")


@pytest.mark.slow
def test_its_libraries_are_had_where_home_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (npm := shutil.which("npm")):
        pytest.skip("npm is not installed")
    monkeypatch.setenv("HOME", "/proc/nowhere")  # not even by root
    (tmp_path / "made").mkdir()
    building.add_libraries(npm, tmp_path / "packages", tmp_path / "made")
    assert {*building.LIBRARIES} <= {path.name for path in (tmp_path / "made").iterdir()}
