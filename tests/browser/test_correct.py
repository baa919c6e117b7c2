"""A mask corrected by hand in a real browser: what a mouse, a finger or keys draw is in the file that it saves."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser.chromium import Chromium
from scipy import ndimage

from scripts.common.files import sha256
from scripts.data.datalist import prepare_datalist
from scripts.group.table import rows_of

DONE = "!document.querySelector('#result').hidden && document.querySelector('#work').hidden"
CTRL, SHIFT = 2, 8
LISTEN = """import('./niivue.js').then(({ Niivue }) => {
    const draw = Niivue.prototype.drawScene
    Niivue.prototype.drawScene = function () { window.viewed = this; return draw.call(this) }
})"""
AT = """(() => {
    const [x, y] = viewed.frac2canvasPos(viewed.scene.crosshairPos), box = viewed.canvas.getBoundingClientRect()
    return [box.x + x / viewed.uiData.dpr, box.y + y / viewed.uiData.dpr]
})()"""


@pytest.fixture(scope="module")
def page(start: Callable, address: str) -> Chromium:
    """A browser with the page open, in which NiiVue can be asked for."""
    browser = start((900, 640))  # few pixels, as the processor draws them
    browser.open(address)
    browser.wait_for("document.body?.dataset.offline")
    browser.ask(LISTEN)
    browser.ask("window.confirm = () => true")
    return browser


def segment(page: Chromium, scan: Path) -> np.ndarray:
    """Drop a scan; its mask as it is saved."""
    page.drop(scan)
    page.wait_for(f"{DONE} && !document.querySelector('#threshold').disabled")
    return saved(page, scan)


def saved(page: Chromium, scan: Path) -> np.ndarray:
    """The mask in the page's view, as it is saved."""
    name = scan.name.split(".")[0].removesuffix("_T2w") + "_desc-lesion_mask"
    mask = nib.load(page.download("#save", f"{name}.nii.gz"))
    np.testing.assert_allclose(mask.affine, nib.load(scan).affine, atol=1e-5)
    return np.asarray(mask.dataobj).astype(bool)


def choose(page: Chromium, tool: str, size: int = 1) -> None:
    page.ask(f"(s => {{ s.value = {size}; s.oninput() }})(document.querySelector('#penSize'))")
    page.click(f"[value={tool}]")


def place_of(page: Chromium, scan: Path, voxel: np.ndarray) -> tuple[float, float]:
    """Bring the crosshair to a voxel of the file, by its place in mm; where it is seen in the window."""
    mm = nib.affines.apply_affine(nib.load(scan).affine, voxel).tolist()
    page.ask(f"viewed.scene.crosshairPos = viewed.mm2frac({mm}, 0, true); viewed.drawScene()")
    return tuple(page.ask(AT))


@pytest.fixture
def scan(page: Chromium, scans: Path) -> Path:
    """A scan in sagittal slices, in the page's view, with the mask that the network drew."""
    scan = scans / "sagittal.nii.gz"
    if "sagittal" not in page.text("#list"):
        segment(page, scan)
    page.ask("[...document.querySelectorAll('#list button')].find((e) => e.textContent.startsWith('sagittal')).click()")
    page.wait_for("document.querySelector('#list [aria-current=true]').textContent.startsWith('sagittal')")
    page.wait_for("!document.querySelector('#correct').hidden")
    discard(page)
    return scan


def discard(page: Chromium) -> None:
    page.ask("document.querySelector('#corrected').hidden || document.querySelector('#discard').click()")
    page.wait_for("!document.querySelector('#threshold').disabled")


def beside(mask: np.ndarray, scan: Path) -> np.ndarray:
    """Voxels of the head that are no lesion and not near one."""
    return np.argwhere(~ndimage.binary_dilation(mask, iterations=8) & (nib.load(scan).get_fdata() > 100))


def drawing(page: Chromium) -> np.ndarray:
    """What NiiVue has drawn, by its own way back to the file's voxels."""
    url = page.ask("""viewed.saveImage({ filename: '', isSaveDrawing: true }).then((bytes) => new Promise((tell) => {
        const reader = new FileReader()
        reader.onload = () => tell(reader.result)
        reader.readAsDataURL(new Blob([bytes]))
    }))""")
    return np.asarray(nib.Nifti1Image.from_bytes(base64.b64decode(url.split(",")[1])).dataobj)


def stroke(page: Chromium, scan: Path, voxel: np.ndarray, corners: list, touch: bool = False) -> None:
    """From a voxel to these many pixels beside it, one after the other."""
    x, y = place_of(page, scan, voxel)
    (page.touch if touch else page.draw)((x, y), *((x + right, y + down) for right, down in corners))


def volume_of(mask: np.ndarray, scan: Path) -> str:
    return f"{mask.sum() * abs(np.linalg.det(nib.load(scan).affine[:3, :3])) / 1000:.1f} mL"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oblique.nii.gz", "sagittal.nii.gz", "lia.nii", "oblique_anisotropic.nii"])
def test_a_voxel_drawn_is_that_voxel_of_the_file(page: Chromium, scans: Path, name: str) -> None:
    """Where it is, nibabel says; the mouse goes to where the page shows that place."""
    scan = scans / name
    before = segment(page, scan)
    voxel = beside(before, scan)[1000]
    choose(page, "pen")
    stroke(page, scan, voxel, [])
    mm = [float(part.strip("xyzm, ")) for part in page.text("#location").split(",")]
    np.testing.assert_allclose(mm, nib.affines.apply_affine(nib.load(scan).affine, voxel), atol=3)
    after = saved(page, scan)
    assert np.argwhere(after != before).tolist() == [voxel.tolist()]
    assert after[tuple(voxel)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oblique.nii.gz", "sagittal.nii.gz"])
@pytest.mark.parametrize("plane", [0, 1, 2], ids=["axial", "coronal", "sagittal"])
def test_what_pens_draw_in_a_plane_is_in_the_file_voxel_by_voxel(
    page: Chromium, scans: Path, name: str, plane: int
) -> None:
    scan = scans / name
    before = segment(page, scan)
    page.ask(f"(s => {{ s.value = {plane}; s.onchange() }})(document.querySelector('#slices'))")
    for tool, size, corners in (
        ("pen", 5, [(40, 0), (40, 30)]),
        ("outline", 1, [(0, 60), (60, 60), (60, 0)]),
        ("eraser", 3, [(20, 20)]),
    ):
        choose(page, tool, size)
        stroke(page, scan, beside(before, scan)[4000], corners)
    after, drawn = saved(page, scan), drawing(page)
    page.ask("(s => { s.value = 3; s.onchange() })(document.querySelector('#slices'))")
    np.testing.assert_array_equal(after, drawn)
    assert (after & ~before).sum() > 20
    assert len(np.unique(np.argwhere(after != before) @ np.abs(main_axis(scan, plane)))) == 1
    assert page.text("#volume") == volume_of(after, scan)


def main_axis(scan: Path, plane: int) -> np.ndarray:
    """The axis of the file's voxels that leads out of an axial, coronal or sagittal plane."""
    axes = nib.io_orientation(nib.load(scan).affine)[:, 0]
    return (axes == 2 - plane).astype(int)


@pytest.mark.slow
def test_undo_and_redo_lead_back_and_forth(page: Chromium, scan: Path) -> None:
    masks = [saved(page, scan)]
    for n in (1000, 3000, 5000):
        choose(page, "pen", 3)
        stroke(page, scan, beside(masks[0], scan)[n], [(20, 10)])
        masks.append(saved(page, scan))
    for mask in masks[-2::-1]:
        page.press("z", CTRL)
        np.testing.assert_array_equal(saved(page, scan), mask)
        assert page.text("#volume") == volume_of(mask, scan)
    assert page.ask("document.querySelector('#undo').disabled && document.querySelector('#corrected').hidden")
    page.press("z", CTRL + SHIFT)
    page.click("#redo")
    np.testing.assert_array_equal(saved(page, scan), masks[2])
    stroke(page, scan, beside(masks[0], scan)[3000], [(-20, 10)])
    saved(page, scan)
    assert page.ask("document.querySelector('#redo').disabled")


@pytest.mark.slow
def test_a_part_is_removed_or_kept_alone_by_a_click(page: Chromium, scan: Path) -> None:
    network = saved(page, scan)
    choose(page, "pen", 7)
    stroke(page, scan, beside(network, scan)[2000], [(20, 0)])
    both = saved(page, scan)
    assert page.text("#lesions") == str(ndimage.label(both, np.ones((3, 3, 3)))[1])
    drawn = np.argwhere(both & ~network)[0]
    choose(page, "remove")
    stroke(page, scan, drawn, [])
    np.testing.assert_array_equal(saved(page, scan), network)
    page.press("z", CTRL)
    choose(page, "keep")
    stroke(page, scan, drawn, [])
    np.testing.assert_array_equal(saved(page, scan), both & ~network)
    assert page.text("#lesions") == "1"
    choose(page, "remove")
    stroke(page, scan, np.argwhere(network)[0], [])  # there is none any more
    np.testing.assert_array_equal(saved(page, scan), both & ~network)


@pytest.mark.slow
def test_inside_a_drawn_region_the_least_probability_is_another(page: Chromium, scan: Path) -> None:
    def slide(slider: str, value: float) -> None:
        page.ask(f"(s => {{ s.value = {value}; s.oninput() }})(document.querySelector('#{slider}'))")

    network, masks = saved(page, scan), {}
    slide("minVolume", 0)
    for value in (0.05, 0.9):
        slide("threshold", value)
        masks[value] = saved(page, scan)
    slide("minVolume", 1000)
    slide("threshold", 0.6)
    np.testing.assert_array_equal(saved(page, scan), network)
    edge = np.argwhere(masks[0.05] & ~masks[0.9])
    choose(page, "region", 5)
    stroke(page, scan, edge[len(edge) // 2], [(0, 40), (40, 40), (40, 0)])
    region = drawing(page) > 1
    slices = np.unique(np.argwhere(region) @ main_axis(scan, 0))
    assert slices.size == 5
    for value in (0.05, 0.9):
        slide("inside", value)
        np.testing.assert_array_equal(saved(page, scan), np.where(region, masks[value], network))
    assert (masks[0.05] & region).sum() > (masks[0.9] & region).sum()
    page.press("z", CTRL)
    np.testing.assert_array_equal(saved(page, scan), network)


@pytest.mark.slow
def test_all_of_it_is_done_by_keys(page: Chromium, scan: Path) -> None:
    network = saved(page, scan)
    voxel = beside(network, scan)[2500]
    choose(page, "look", 1)
    place_of(page, scan, voxel)
    page.ask("document.querySelector('#canvas').focus()")
    for key in ("p", "]", "]", "[", "Enter"):
        page.press(key)
    drawn = saved(page, scan) & ~network
    assert drawn.sum() > 4
    assert drawn[tuple(voxel)]
    for key in ("e", "[", "[", "ArrowRight", "Enter"):
        page.press(key)
    erased = np.argwhere(drawn & ~saved(page, scan))
    moved = nib.load(scan).affine[:3, :3] @ (erased - voxel).T
    assert moved.T.round().tolist() == [[3, 0, 0]]  # one voxel to the right
    page.press("r")
    page.press("ArrowLeft")
    page.press("Enter")
    np.testing.assert_array_equal(saved(page, scan), network)
    page.press("?")
    assert page.ask("document.querySelector('#keys').open")
    page.ask("document.querySelector('#keys').close()")
    page.press("Escape")
    assert page.ask("document.querySelector('[value=look]').checked")
    page.ask("document.querySelector('#example').focus()")
    page.press("p")  # letters are the scan's alone
    assert page.ask("document.querySelector('[value=look]').checked")


@pytest.mark.slow
def test_a_finger_draws_as_a_mouse_does(page: Chromium, scan: Path) -> None:
    network = saved(page, scan)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    choose(page, "pen", 3)
    for n in (1000, 2000):  # quickly, which is no double tap
        stroke(page, scan, beside(network, scan)[n], [(15, 0), (30, 5)], touch=True)
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    after = saved(page, scan)
    assert ndimage.label(after & ~network, np.ones((3, 3, 3)))[1] == 2
    np.testing.assert_array_equal(after, drawing(page))


@pytest.mark.slow
def test_the_settings_do_not_throw_a_correction_away(page: Chromium, scan: Path) -> None:
    network = saved(page, scan)
    choose(page, "pen", 3)
    stroke(page, scan, beside(network, scan)[2000], [(20, 0)])
    corrected = saved(page, scan)
    assert page.ask("document.querySelector('#threshold').disabled && document.querySelector('#minVolume').disabled")
    assert "corrected" in page.text("#list [aria-current=true]")
    discard(page)
    np.testing.assert_array_equal(saved(page, scan), network)
    assert (corrected != network).any()
    assert "corrected" not in page.text("#list [aria-current=true]")


@pytest.mark.slow
def test_a_corrected_mask_is_taken_for_training_and_its_sidecar_says_what_made_it(
    page: Chromium, scans: Path, weights: Path, tmp_path: Path
) -> None:
    """By ``prepare_datalist --labels`` and by the group's table, as it is saved."""
    folder = tmp_path / "corrected"
    folder.mkdir()
    for subject in range(1, 8):
        (tmp_path / f"sub-{subject}_ses-1_T2w.nii.gz").write_bytes((scans / "sagittal.nii.gz").read_bytes())
    volumes = {}
    for subject in (1, 2):
        scan = tmp_path / f"sub-{subject}_ses-1_T2w.nii.gz"
        mask = segment(page, scan)
        if subject == 1:
            choose(page, "pen", 3)
            stroke(page, scan, beside(mask, scan)[2000], [(20, 0)])
            mask = saved(page, scan)
        page.download("#saveSidecar", f"sub-{subject}_ses-1_desc-lesion_mask.json")
        volumes[subject] = mask.sum() * 27
        for end in ("nii.gz", "json"):
            name = f"sub-{subject}_ses-1_desc-lesion_mask.{end}"
            (folder / name).write_bytes((page.folder / name).read_bytes())
    for subject in range(3, 8):
        for end in ("nii.gz", "json"):
            content = (folder / f"sub-1_ses-1_desc-lesion_mask.{end}").read_bytes()
            (folder / f"sub-{subject}_ses-1_desc-lesion_mask.{end}").write_bytes(content)
    told = [json.loads((folder / f"sub-{i}_ses-1_desc-lesion_mask.json").read_text()) for i in (1, 2)]
    assert [one["Manual"] for one in told] == [True, False]
    assert told[0]["GeneratedBy"][0]["Weights"] == weights.name
    assert told[0]["GeneratedBy"][0]["WeightsSHA256"] == sha256(weights)
    assert told[0]["Sources"] == ["bids:raw:sub-1/ses-1/anat/sub-1_ses-1_T2w.nii.gz"]
    datalist = json.loads(Path(prepare_datalist(str(tmp_path), labels="corrected")).read_text())
    taken = {scan["subject"]: scan["lesion_volume"] for scan in datalist["training"]}
    assert taken == {"1": volumes[1], "2": volumes[2]} | {str(i): volumes[1] for i in range(3, 8)}
    rows = {row["participant_id"]: row for row in rows_of(folder, None)}
    assert [rows[f"sub-{i}"]["changed_by_hand"] for i in (1, 2)] == ["true", "false"]
    assert rows["sub-1"]["lesion_volume"] == volumes[1]
