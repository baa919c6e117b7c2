"""The page of all scans in a real browser, opened from disk: what it shows, what it keeps, and what it gives."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from browser.chromium import Chromium
from PIL import Image

from scripts.common.errors import InputError
from scripts.group.page import write_page

VOLUMES = [12345.6, 0.0, 250000.0, 800.0, 70000.0, 33.0, None, 4000.0]
LATERALITY = [1.0, None, -0.5, 0.2, -1.0, 0.0, None, None]
QUALITY = [0.9, None, 0.4, 0.75, 0.85, None, None, 0.6]
ATTACK = "<!--<script>document.title = 'attacked'</script><img src=x onerror=\"document.title = 'attacked'\">"


def rows_in(folder: Path, n: int = 8) -> list[dict]:
    """``n`` scans with pictures in ``folder``, the second in its second session; what repeats after 8 is the volume."""
    rows = []
    for i in range(n):
        name = f"sub-{i + 1}/sub-{i + 1}" if i != 1 else "sub-1/sub-1_ses-2"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 255, (60, 110), np.uint8)
        Image.fromarray(noise).save(folder / f"{name}_desc-lesion_qc.png")
        volume, laterality = VOLUMES[i % 8], LATERALITY[i % 8]
        left = None if laterality is None else volume * (1 + laterality) / 2
        row = {
            "participant_id": name.split("/")[0],
            "session_id": "ses-2" if i == 1 else None,
            "acq": None,
            "run": None,
        }
        row |= {"mask": f"{name}_desc-lesion_mask.nii.gz", "picture": f"{name}_desc-lesion_qc.png"}
        row |= {
            "scan": f"bids:raw:{name}_T2w.nii.gz",
            "lesion_volume": volume,
            "lesions": None if volume is None else i,
        }
        row |= {"left_volume": left, "right_volume": None if left is None else volume - left, "laterality": laterality}
        row |= {"quality": QUALITY[i % 8], "unusual": "contrast 0.1 (usual 0.3 to 0.5)" if i == 2 else None}
        row |= {"changed_by_hand": i == 3, "weights": "model.pt (cedcc5c6)", "threshold": 0.85, "min_volume": 1000.0}
        rows.append(row | {"decision": None, "note": None})
    return rows


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A real browser."""
    if not (program := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("Chromium is not installed, in which the page is opened")
    browser = Chromium(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


def show(browser: Chromium, page: Path) -> None:
    """Open a page from disk and wait until it has run."""
    browser.requests.clear()
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait_for(f"location.href == {json.dumps(page.as_uri())} && document.readyState == 'complete'")


def press(browser: Chromium, *keys: str) -> None:
    """Press keys as a hand does."""
    for key in keys:
        text = {"text": key} if len(key) == 1 else {}
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def listed(browser: Chromium, column: str = "name") -> list[str]:
    """What the rows in sight say in a column, from top to bottom."""
    cells = f"[...document.querySelectorAll('tbody tr:not([hidden]) .{column}')]"
    return browser.ask(f"{cells}.map((cell) => cell.innerText.trim().replace(/\\s+/g, ' '))")


def decisions(browser: Chromium) -> pandas.DataFrame:
    """What the page saves."""
    return pandas.read_csv(browser.download("#save", "decisions.tsv"), sep="\t", index_col="mask")


def find(browser: Chromium, words: str, which: str = "all") -> None:
    for selector, value in (("#words", words), ("#which", which)):
        field = f"Object.assign(document.querySelector('{selector}'), {{ value: {json.dumps(value)} }})"
        browser.ask(f"{field}.dispatchEvent(new Event('{'input' if selector == '#words' else 'change'}'))")


def test_every_scan_is_listed_with_its_numbers_and_what_is_unknown_is_n_a(browser: Chromium, tmp_path: Path) -> None:
    rows = rows_in(tmp_path)
    rows[0] |= {"lesion_volume": np.float64(12345.6), "lesions": np.int64(3), "changed_by_hand": "false"}
    rows[1] |= {"quality": float("nan"), "run": "2", "acq": "acq-spc3"}
    show(browser, write_page(tmp_path, rows))
    names = ["sub-1", "sub-1 ses-2 acq-spc3 run-2", *(f"sub-{i}" for i in range(3, 9))]
    assert listed(browser) == names
    assert listed(browser, "volume") == ["12.3", "0.0", "250.0", "0.8", "70.0", "<0.1", "n/a", "4.0"]
    assert listed(browser, "parts") == ["3", "1", "2", "3", "4", "5", "n/a", "7"]
    assert listed(browser, "sides") == [
        "100 % left",
        "n/a",
        "75 % right",
        "60 % left",
        "100 % right",
        "even",
        "n/a",
        "n/a",
    ]
    assert listed(browser, "quality") == ["0.90", "n/a", "0.40", "0.75", "0.85", "n/a", "n/a", "0.60"]
    assert listed(browser, "unusual") == ["", "", "unusual", "by hand", "", "", "", ""]
    press(browser, "j", "j")
    assert (
        browser.text("#warning")
        == "Unlike the scans that the weights were trained on: contrast 0.1 (usual 0.3 to 0.5)."
    )
    facts = browser.ask("document.querySelector('#facts').innerText").split("\n")
    told = dict(zip(facts[::2], facts[1::2], strict=True))
    assert (told["Left"], told["Right"], told["Threshold"]) == ("62.5 mL", "187.5 mL", "0.85")
    assert told["Mask"] == rows[2]["mask"]
    picture = browser.ask("[document.querySelector('#picture img')].map((image) => [image.naturalWidth, image.alt])[0]")
    assert picture == [110, "Slices of sub-3 with the mask's outline"]


@pytest.mark.parametrize(
    ("column", "key", "ascending"),
    [("volume", "lesion_volume", False), ("quality", "quality", True), ("sides", "laterality", False),
     ("parts", "lesions", False), ("name", "mask", False)],
)  # fmt: skip
def test_a_click_on_a_column_sorts_and_another_turns_round(
    browser: Chromium, tmp_path: Path, column: str, key: str, ascending: bool
) -> None:
    rows = rows_in(tmp_path, 12)
    show(browser, write_page(tmp_path, rows))
    table = pandas.DataFrame(rows)
    table["name"] = table.participant_id + table.session_id.map({"ses-2": " ses-2"}).fillna("")
    table["mask"] = table.participant_id.str[4:].astype(int) + table.session_id.notna() / 2  # sub-10 is after sub-9
    for turn in (ascending, not ascending):
        browser.click(f"th.{column} button")
        ordered = table.sort_values([key, "mask"], ascending=[turn, True], na_position="last")
        assert listed(browser) == ordered["name"].tolist()
        said = browser.ask("[...document.querySelectorAll('[aria-sort]')].map((th) => [th.className, th.ariaSort])")
        assert said == [[column, "ascending" if turn else "descending"]]


def test_unusual_scans_come_first_if_they_are_asked_for(browser: Chromium, tmp_path: Path) -> None:
    show(browser, write_page(tmp_path, rows_in(tmp_path)))
    browser.click("th.unusual button")
    assert listed(browser)[:3] == ["sub-3", "sub-4", "sub-1"]


def test_words_and_decisions_filter(browser: Chromium, tmp_path: Path) -> None:
    rows = rows_in(tmp_path)
    rows[4] |= {"decision": "reject", "note": "Frontal pole missed"}
    rows[5] |= {"decision": "accept"}
    show(browser, write_page(tmp_path, rows))
    for words, which, names in (
        ("SUB-1", "all", ["sub-1", "sub-1 ses-2"]),
        ("sub-1 ses", "all", ["sub-1 ses-2"]),
        ("by hand", "all", ["sub-4"]),
        ("unusual", "all", ["sub-3"]),
        ("pole", "all", ["sub-5"]),
        ("", "reject", ["sub-5"]),
        ("sub", "", ["sub-1", "sub-1 ses-2", "sub-3", "sub-4", "sub-7", "sub-8"]),
        ("pole", "accept", []),
    ):
        find(browser, words, which)
        assert listed(browser) == names, (words, which)
        assert browser.ask("document.querySelector('#none').checkVisibility()") == (not names)
        assert not names or browser.text("#place") == f"1 of {len(names)}"
        assert not names or browser.text("#name").strip() == names[0]
    press(browser, "j", "a")  # nothing is in sight, so nothing is decided
    find(browser, "")
    assert listed(browser, "decision").count("✓ accepted") == 1


def test_decisions_by_keyboard_outlive_a_reload_and_are_saved_for_pandas(browser: Chromium, tmp_path: Path) -> None:
    rows = rows_in(tmp_path)
    page = write_page(tmp_path, rows)
    show(browser, page)
    press(browser, "a", "j", "r", "ArrowDown", "c", "n")
    browser.call("Input.insertText", text='"left" edge,\ttoo\nwide; ja')
    press(browser, "Escape", "j", "j", "k", "a", "u", "n")
    browser.call("Input.insertText", text="=1+1")
    press(browser, "Escape", "ArrowDown", "ArrowUp", "ArrowDown", "A", "x")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="r", modifiers=2)  # Ctrl+R is the browser's
    show(browser, page)
    assert listed(browser, "decision")[:2] == ["✓ accepted", "✕ rejected"]
    assert browser.text("#save") == "Save decisions.tsv (4 new)"
    saved = decisions(browser)
    assert saved.columns.tolist() == ["decision", "note", "mask_sha256"]
    assert saved.index.tolist() == [row["mask"] for row in rows[:4]]
    assert saved.decision.fillna("").tolist() == ["accept", "reject", "correct", ""]
    assert saved.note.fillna("").tolist() == ["", "", '"left" edge, too wide; ja', "'=1+1"]
    assert browser.text("#save") == "Save decisions.tsv"
    for row, note in zip(rows, saved.note, strict=False):
        row |= {"decision": saved.decision[row["mask"]], "note": note}
    show(browser, write_page(tmp_path, rows))  # with the saved file in its place
    notes = ["✓ accepted", "✕ rejected", '✎ to correct "left" edge, too wide; ja', "undecided =1+1"]
    assert listed(browser, "decision")[:4] == notes
    assert decisions(browser).equals(saved)
    assert browser.text("#count") == "1 accepted, 1 rejected, 1 to correct, 5 undecided"


def test_help_says_the_keys_and_turns_them_off(browser: Chromium, tmp_path: Path) -> None:
    show(browser, write_page(tmp_path, rows_in(tmp_path)))
    press(browser, "?")
    assert browser.ask("document.querySelector('#help').open")
    press(browser, "a")
    browser.click("#keys")
    press(browser, "Escape")
    browser.click("#help button")
    press(browser, "a")
    assert set(listed(browser, "decision")) == {"undecided"}


def test_what_this_browser_has_not_saved_is_kept_and_else_the_file_counts(browser: Chromium, tmp_path: Path) -> None:
    rows = rows_in(tmp_path)
    rows[0] |= {"decision": "accept", "note": "from the file"}
    show(browser, write_page(tmp_path, rows))
    assert listed(browser, "decision")[0] == "✓ accepted from the file"
    press(browser, "r", "j", "r")
    decisions(browser)
    show(browser, write_page(tmp_path, rows))  # the saved file is not in its place yet
    assert listed(browser, "decision")[:2] == ["✕ rejected from the file", "✕ rejected"]
    press(browser, "j", "a")
    rows[0] |= {"decision": "correct", "note": "a colleague's"}
    rows[1] |= {"decision": "reject"}
    show(browser, write_page(tmp_path, rows))
    assert listed(browser, "decision")[:2] == ["✎ to correct a colleague's", "✓ accepted"]


def test_a_decision_on_an_earlier_mask_is_none_on_this_one(browser: Chromium, tmp_path: Path) -> None:
    rows = rows_in(tmp_path)
    show(browser, write_page(tmp_path, rows))
    press(browser, "a", "j", "a")
    rows[0]["lesion_volume"] += 500
    show(browser, write_page(tmp_path, rows))
    assert listed(browser, "decision")[:2] == ["undecided", "✓ accepted"]
    assert listed(browser, "unusual")[0] == "new mask"
    assert browser.text("#warning") == "This mask is new; an earlier one was accepted."
    press(browser, "a")
    assert listed(browser, "unusual")[0] == ""


def test_another_dataset_has_its_own_decisions_though_its_scans_have_the_same_names(
    browser: Chromium, tmp_path: Path
) -> None:
    pages = [write_page(tmp_path / name, rows_in(tmp_path / name)) for name in ("one", "two")]
    show(browser, pages[0])
    press(browser, "a")
    show(browser, pages[1])
    assert browser.text("#count") == "0 accepted, 0 rejected, 0 to correct, 8 undecided"
    assert str(tmp_path) not in pages[0].read_text()


def test_a_browser_that_keeps_nothing_says_so(browser: Chromium, tmp_path: Path) -> None:
    refuse = "Storage.prototype.getItem = Storage.prototype.setItem = () => { throw new Error('refused') }"
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=refuse)["identifier"]
    show(browser, write_page(tmp_path, rows_in(tmp_path)))
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    browser.click("[data-decision=reject]")
    assert browser.text("#said") == "This browser keeps no decisions. Save them before you close this page."
    assert decisions(browser).decision.tolist() == ["reject"]


def test_rejected_scans_are_not_in_the_histogram_and_the_numbers(browser: Chromium, tmp_path: Path) -> None:
    show(browser, write_page(tmp_path, rows_in(tmp_path)))

    def bars() -> list[int]:
        texts = browser.ask("[...document.querySelectorAll('#histogram rect + text')].map((text) => text.textContent)")
        return [int(text or 0) for text in texts]

    known = np.array([volume for volume in VOLUMES if volume]) / 1000
    counts, _ = np.histogram(known, [0, 1, 2, 5, 10, 20, 50, 100, 200, np.inf])
    assert bars() == [1, *counts]
    assert browser.ask("document.querySelector('#numbers dd').innerText").split() == ["8", "7", "participants"]
    press(browser, "j", "j", "r")
    assert bars() == [1, *counts[:-1], 0]
    assert "1 rejected, not counted" in browser.text("#numbers")
    low, median, high = (f"{volume:.1f}" for volume in np.quantile([0, *known[known < 250]], [0.25, 0.5, 0.75]))
    assert f"{median} mLhalf have {low} to {high}" in browser.text("#numbers")


def test_markup_in_names_and_notes_is_text(browser: Chromium, tmp_path: Path) -> None:
    rows = rows_in(tmp_path)
    rows[0] |= dict.fromkeys(("participant_id", "session_id", "note", "unusual", "weights", "scan", "acq"), ATTACK)
    rows[0] |= {"mask": f"{ATTACK}_desc-lesion_mask.nii.gz", "decision": "accept"}
    show(browser, write_page(tmp_path, rows))
    find(browser, "attacked")
    assert ATTACK in listed(browser, "decision")[0]
    assert ATTACK in browser.text("#name")
    press(browser, "n")
    browser.call("Input.insertText", text=ATTACK)
    assert browser.ask("document.title") == f"Lesions: {tmp_path.name}"
    assert browser.ask("document.querySelectorAll('script').length") == 2


def test_it_is_one_file_that_asks_nobody_and_runs_no_other_script(browser: Chromium, tmp_path: Path) -> None:
    overlap = tmp_path / "overlap.png"
    Image.new("RGB", (2000, 400), "navy").save(overlap)
    page = write_page(tmp_path, rows_in(tmp_path), overlap)
    moved = tmp_path / "elsewhere" / "page.html"
    moved.parent.mkdir()
    shutil.copy(page, moved)
    browser.problems.clear()
    show(browser, moved)
    press(browser, "j", "a")
    decisions(browser)
    assert browser.ask("document.querySelector('#overlap').naturalWidth") == 880
    assert [url for url in browser.requests if not url.startswith(("data:", moved.as_uri()))] == []
    assert browser.problems == []
    assert browser.ask("fetch('https://example.com').catch(() => 'refused')") == "refused"
    browser.ask("document.body.append(Object.assign(document.createElement('script'), { text: 'document.title = 1' }))")
    browser.ask("document.body.append(Object.assign(new Image(), { src: 'https://example.com/a.png' }))")
    assert browser.text("title") != "1"
    for directive in ("default-src 'none'", "script-src 'sha256-", "img-src data:"):
        assert any("Content Security Policy" in line and directive in line for line in browser.problems), directive


def test_pictures_of_300_scans_are_unpacked_as_they_come_near(browser: Chromium, tmp_path: Path) -> None:
    page = write_page(tmp_path, rows_in(tmp_path, 300))
    begin = time.perf_counter()
    show(browser, page)
    assert len(listed(browser)) == 300
    print(f"300 scans of {page.stat().st_size / 1e6:.1f} MB: {time.perf_counter() - begin:.2f} s")
    browser.wait_for("document.querySelector('tbody img').naturalWidth")
    unpacked = "[...document.querySelectorAll('tbody img')].filter((image) => image.src).length"
    assert 0 < browser.ask(unpacked) < 60
    browser.ask("document.querySelector('tbody tr:last-child').scrollIntoView()")
    browser.wait_for("document.querySelector('tbody tr:last-child img').naturalWidth")
    assert browser.ask(unpacked) < 120


CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true })
  const paint = (...colours) => {
    canvas.clearRect(0, 0, 1, 1)
    for (canvas.fillStyle of colours) canvas.fillRect(0, 0, 1, 1)
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05
  }
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), poor = []
  let n = 0
  while (walker.nextNode()) {
    const { parentElement: parent, textContent } = walker.currentNode
    if (!textContent.trim() || !parent.checkVisibility() || parent.closest('script, option')) continue
    const behind = []
    for (let e = parent; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor)
    const style = getComputedStyle(parent), colour = parent.closest('svg') ? style.fill : style.color
    const [x, y] = [paint(...behind, colour), paint(...behind)].sort((a, b) => b - a)
    n += 1
    if (x / y < 4.5) poor.push([textContent.trim(), x / y])
  }
  return [n, poor]
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_told_from_what_is_behind_it_as_wcag_aa_asks(browser: Chromium, tmp_path: Path, dark: bool) -> None:
    show(browser, write_page(tmp_path, rows_in(tmp_path)))
    press(browser, "a", "j", "r", "j", "c", "j", "j")
    browser.resize(1280, 800, dark)
    for keys in (["a"], ["k", "k"], ["r"], ["u"]):
        press(browser, *keys)
        n, poor = browser.ask(CONTRAST)
        assert n > 100
        assert poor == []
    browser.resize(1280, 800)


@pytest.mark.parametrize(("width", "height"), [(768, 1024), (1024, 768), (1920, 1080)])
def test_it_fits_a_tablet_and_the_chosen_scan_stays_in_sight(
    browser: Chromium, tmp_path: Path, width: int, height: int
) -> None:
    show(browser, write_page(tmp_path, rows_in(tmp_path, 40)))
    browser.resize(width, height)
    press(browser, *"j" * 30)
    box = "(({ left, top, right, bottom }) => [left, top, right, bottom])"
    for selector in ("#picture img", "#decide", "#save", "[aria-current] button", "[aria-current] .decision"):
        left, top, right, bottom = browser.ask(f"{box}(document.querySelector('{selector}').getBoundingClientRect())")
        assert -1 < left < right < width + 1, selector
        assert -1 < top < bottom < height + 1, selector
    ring = "getComputedStyle(document.activeElement)"
    assert browser.ask(f"[{ring}.outlineStyle, parseFloat({ring}.outlineWidth) >= 2]") == ["solid", True]
    browser.resize(1280, 800)


def test_an_empty_folder_has_a_page_that_says_so(browser: Chromium, tmp_path: Path) -> None:
    browser.problems.clear()
    show(browser, write_page(tmp_path, []))
    assert "There is no scan here yet." in browser.ask("document.body.innerText")
    assert not browser.ask("document.querySelector('#review').checkVisibility()")
    press(browser, "j", "a", "?")
    assert browser.problems == []


def test_a_picture_that_is_not_there_or_broken_is_named_and_the_others_are_shown(
    browser: Chromium, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_in(tmp_path)
    rows[0]["picture"] = None
    (tmp_path / rows[1]["picture"]).write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / rows[2]["picture"]).unlink()
    show(browser, write_page(tmp_path, rows))
    assert [message.split(": ")[0] for message in caplog.messages] == [
        str(tmp_path / rows[i]["picture"]) for i in (1, 2)
    ]
    assert browser.text("#picture") == "No picture of this scan"
    assert browser.ask("document.querySelectorAll('tbody img').length") == 5


def test_a_page_that_cannot_be_written_is_a_line_and_the_old_one_stays(tmp_path: Path) -> None:
    (tmp_path / "group").write_text("a file of mine")
    with pytest.raises(InputError, match=r"group.*cannot be written"):
        write_page(tmp_path, [])
    assert (tmp_path / "group").read_text() == "a file of mine"
