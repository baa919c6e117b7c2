"""The page with the small released weights, made and served once, and browsers to open it in."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser.chromium import Chromium
from conftest import INFERENCE, REAL, ROOT
from monai.bundle import ConfigWorkflow
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from scripts.browser.serve import server_of
from scripts.browser.site import build_site, example_scan
from scripts.common.errors import InputError

PATIENT = REAL / "patients" / "M2265_T2w.nii.gz"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small released weights, on a coarse grid that takes seconds, with a limit beyond which the network adapts."""
    path = tmp_path_factory.mktemp("weights") / "model_5.pt"
    shutil.copy(ROOT / "models" / path.name, path)
    card = json.loads((ROOT / "models" / "model_5.json").read_text())
    card |= {"spacing": [3.0] * 3, "spatial_size": [64, 80, 64]}
    card["network_def"] |= {"norm_adaptation": 0.2, "norm_shift_limit": 0.36}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="session")
def site(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's folder."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed, which fetches what the page is made of")
    try:
        return build_site(str(tmp_path_factory.mktemp("page") / "site"), str(weights))
    except InputError as error:
        if str(error).startswith("npm ci") and any(
            word in str(error) for word in ("ENOTFOUND", "EAI_AGAIN", "network")
        ):
            pytest.skip(f"npm cannot reach its registry: {error}")
        raise


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where it is served."""
    with server_of(str(site), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    """A function that starts a browser with its own profile and folder of downloads; it is closed after the file."""
    if not (program := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("Chromium is not installed, in which the page is opened")
    browsers = []

    def start(*flags: str) -> Chromium:
        browsers.append(Chromium(program, tmp_path_factory.mktemp("browser"), *flags))
        return browsers[-1]

    yield start
    for browser in browsers:
        browser.close()


@pytest.fixture(scope="module")
def page(start: Callable, address: str) -> Chromium:
    """A browser with the page open, which keeps it for use without a network."""
    browser = start()
    browser.open(address)
    browser.wait_for("document.body?.dataset.offline")
    return browser


@pytest.fixture(scope="session")
def head() -> nib.Nifti1Image:
    """A simulated scan, 64x80x64 voxels of 3 mm."""
    return example_scan(3)


@pytest.fixture(scope="session")
def scans(head: nib.Nifti1Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of that scan as scanners and programs store scans, and of a patient's scan where there is one."""
    folder, data, affine = tmp_path_factory.mktemp("scans"), np.asarray(head.dataobj), head.affine
    middle = nib.affines.apply_affine(affine, (np.array(data.shape) - 1) / 2)

    def on_grid(angles: tuple, voxel: tuple, shape: tuple) -> nib.Nifti1Image:
        linear = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(voxel)
        grid = nib.affines.from_matvec(linear, middle - linear @ (np.array(shape) - 1) / 2)
        return resample_from_to(head, (shape, grid), order=1)

    def turned(axes: str) -> nib.Nifti1Image:
        turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
        return head.as_reoriented(turn)

    def save(
        image: nib.Nifti1Image, name: str, dtype: type | str = np.int16, kind: type = nib.Nifti1Image, **forms: int
    ):
        image = kind(np.asarray(image.dataobj).astype(dtype), image.affine)
        image.header.set_data_dtype(dtype)
        image.set_sform(image.affine, forms.get("sform", 2))
        image.set_qform(image.affine, forms.get("qform", 1))
        nib.save(image, folder / name)

    save(head, "plain_T2w.nii.gz")
    save(turned("LIA"), "lia.nii", np.float32)
    save(turned("PSR"), "sagittal.nii.gz", np.uint16)
    save(on_grid((0, 0, 0), (-1.5, 1.5, 6), (130, 160, 34)), "anisotropic.nii.gz")
    save(on_grid((20, -15, 10), (3, 3, 3), (70, 84, 70)), "oblique.nii.gz", np.float64)
    save(on_grid((-35, 12, 170), (2, 5, 2), (100, 46, 98)), "oblique_anisotropic.nii", np.int32, nib.Nifti2Image)
    save(head, "qform.nii.gz", sform=0)
    save(nib.Nifti1Image(np.pad(data, ((0, 0), (0, 0), (data.shape[2], 0))), affine), "air_below.nii.gz")
    big = nib.Nifti1Image(data.astype(">i2"), affine, nib.Nifti1Header(endianness=">"))
    nib.save(big, folder / "bigendian.nii")
    scaled = nib.Nifti1Image(on_grid((5, 0, -8), (2.5, 2.5, 3.5), (80, 96, 56)).get_fdata() / 600, np.eye(4))
    scaled = nib.Nifti1Image(scaled.get_fdata(), on_grid((5, 0, -8), (2.5, 2.5, 3.5), (80, 96, 56)).affine)
    scaled.header.set_data_dtype(np.int16)  # nibabel finds slope and intercept
    nib.save(scaled, folder / "scaled.nii.gz")
    darker = 600 * (np.clip(data, 0, 600) / 600) ** 2.5
    save(nib.Nifti1Image(darker, affine), "darker.nii.gz")
    if PATIENT.is_file():
        (folder / PATIENT.name).symlink_to(PATIENT)
    return folder


@pytest.fixture(scope="session")
def inferred(weights: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``configs/inference.json`` makes of them, in float32 as the browser computes."""
    return infer(weights, scans / "*.nii*", tmp_path_factory.mktemp("inferred"))


def infer(weights: Path, scans: Path, folder: Path) -> Path:
    """The folder, into which ``configs/inference.json`` has written what these weights make of these scans."""
    options = {"ckpt_path": str(weights), "device": "cpu", "amp": False, "qc": False}
    paths = {"input": str(scans), "output_dir": str(folder)}
    workflow = ConfigWorkflow(INFERENCE, workflow_type="infer", logging_file=False, **paths, **options)
    workflow.initialize()
    workflow.run()
    return folder
