"""What fails at one scan is told in a line, and the other scans go on."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from browser.chromium import Chromium
from browser.test_many import BLIND, READY, show, slide

from scripts.browser.serve import server_of

STATES = "[...document.querySelectorAll('#list button')].map((one) => one.lastChild.className)"


def opened(start: Callable, address: str) -> Chromium:
    """A browser of its own with the page, which draws nothing."""
    page = start((500, 600), False, *BLIND)
    page.open(address)
    page.wait_for("document.body?.dataset.offline")
    return page


@pytest.mark.slow
def test_a_network_that_fails_at_one_scan_is_told_and_the_others_go_on(
    start: Callable, site: Path, scans: Path, tmp_path: Path
) -> None:
    """The graph that one scan alone needs, beyond the card's limit, is cut."""
    broken = shutil.copytree(site, tmp_path / "site")
    (broken / "adapted.onnx").write_bytes((site / "adapted.onnx").read_bytes()[:2000])
    with server_of(str(broken), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened(start, f"http://localhost:{server.server_port}/")
        page.drop(*(scans / name for name in ("bigendian.nii", "darker.nii.gz", "sagittal.nii.gz")))
        page.wait_for("document.querySelectorAll('#list .done, #list .failed').length === 3")
        assert page.ask(STATES) == ["done", "failed", "done"]
        line = page.text("#error")
        assert line.startswith("darker.nii.gz: it could not be worked on (")
        assert "\n" not in line
        show(page, "sagittal.nii.gz")
        assert page.text("#error") == ""
        server.shutdown()


@pytest.mark.slow
def test_a_worker_that_ends_at_one_scan_is_told_and_the_others_go_on(
    start: Callable, address: str, scans: Path
) -> None:
    """As where a browser ends it, such as for want of memory."""
    page = opened(start, address)
    page.ask("""window.Worker = class extends Worker {
        postMessage(content, moved) {
            if (content.kind !== 'segment' || content.file.name !== 'lia.nii') super.postMessage(content, moved)
            else this.dispatchEvent(new ErrorEvent('error', { message: 'out of memory' }))
        }
    }""")
    page.drop(*(scans / name for name in ("bigendian.nii", "lia.nii", "sagittal.nii.gz")))
    page.wait_for("document.querySelectorAll('#list .done, #list .failed').length === 3")
    assert page.ask(STATES) == ["done", "failed", "done"]
    assert page.text("#error") == "lia.nii: it could not be worked on (out of memory)."


@pytest.mark.slow
def test_a_kept_scan_that_is_damaged_is_told_and_the_others_can_be_changed(
    start: Callable, address: str, scans: Path
) -> None:
    """Its probability is no longer what was written to the disk."""
    page = opened(start, address)
    page.drop(scans / "bigendian.nii", scans / "sagittal.nii.gz")
    page.wait_for(f"{READY} && document.querySelectorAll('#list .done').length == 2")
    page.wait_for("!document.querySelector('#kept').hidden")
    page.ask("""import('./idb-keyval.js').then(async ({ get, keys, set }) => {
        for (const key of await keys()) {
            const id = key.replace('scan ', '')
            if (key !== id && (await get(key)).name === 'bigendian.nii') await set(`probability ${id}`, new Blob(['x']))
        }
    })""")
    page.open(address)
    page.wait_for("!document.querySelector('#reopen').hidden")
    page.click("#reopen")
    page.wait_for(READY)
    show(page, "bigendian.nii")
    slide(page, "threshold", 0.9)
    line = page.wait_for("document.querySelector('#error').textContent")
    assert line.startswith("bigendian.nii: it could not be worked on (")
    assert "\n" not in line
    show(page, "sagittal.nii.gz")
    assert page.text("#error") == ""
    volume = page.text("#volume")
    slide(page, "threshold", 0.95)
    page.wait_for(f"document.querySelector('#volume').textContent !== '{volume}'")
