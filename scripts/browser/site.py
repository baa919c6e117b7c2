"""Makes the page's folder: complete and static, so that any host will do and nothing is fetched from another."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.browser.graphs import write_graphs
from scripts.common.errors import InputError, one_line
from scripts.common.files import sha256
from scripts.inference.derivative import NAME
from scripts.simulation.anatomy import box, load_head
from scripts.simulation.scanner import RANGES, simulate_scan
from scripts.weights.weights import Weights

PAGE = Path(__file__).with_name("page")
LIBRARIES = {  # by their name in the page: where npm puts them
    "client-zip.js": "client-zip/index.js",
    "idb-keyval.js": "idb-keyval/dist/index.js",
    "lit-html.js": "lit-html/lit-html.js",
    "niivue.js": "@niivue/niivue/dist/index.js",
    "pako.js": "pako/dist/browser/pako_inflate.esm.min.mjs",
    **{name: f"@niivue/dcm2niix/dist/{name}" for name in ("dcm2niix.jpeg.js", "dcm2niix.jpeg.wasm")},
    **{
        name: f"onnxruntime-web/dist/{name}"
        for kind in ("wasm", "jspi")  # jspi is the smallest build with WebGPU
        for name in (
            f"ort.{kind}.min.mjs",
            *(f"ort-wasm-simd-threaded{'.jspi' * (kind == 'jspi')}.{end}" for end in ("mjs", "wasm")),
        )
    },
}
SHOWN = ("about", "channels", "simulated", "cohort", "trained_on", "bundle_version", "date", "license")
LIST = "files.js"
NOT_KEPT = ("index.html", "licenses.txt", "service_worker.js")  # by the browser, so not in the list of 0.14.0
EXAMPLE = "example_T2w.nii.gz"


def build_site(output_dir: str, ckpt_path: str, example: bool = True) -> Path:
    """Make the page for these weights in ``output_dir``, in place of a page that is there already.

    Args:
        output_dir: the folder.
        ckpt_path: the weights, of two classes, with their card beside them.
        example: add a simulated scan to try.

    Raises:
        InputError: no weights, a card that the page cannot follow, no npm, libraries that cannot be had, or a folder
            with something else in it; what was there is kept then.
    """
    output, weights = Path(output_dir).resolve(), Weights(ckpt_path, single=True)
    card = weights.card
    if (classes := card["network_def"].get("out_channels", 2)) != 2:
        raise InputError(f"{ckpt_path}: has {classes} classes; the page shows one, lesion")
    refuse_strangers(output)
    if not (npm := shutil.which("npm")):
        raise InputError("npm: not found; install Node.js 18 or newer, which brings it (nodejs.org, apt install npm)")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder:
            made, packages = Path(folder) / "site", Path(folder) / "packages"
            made.mkdir()
            add_libraries(npm, packages, made)
            add_page(made, weights, example)
            write_graphs(weights, made)
            write_list(made)
            refuse_strangers(output)  # npm takes its time
            replace_folder(output, made, Path(folder) / "old")
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); what was there before is kept") from error
    size = sum(path.stat().st_size for path in output.iterdir())
    print(
        f"Written: {output} ({size / 1e6:.1f} MB); look at it with: python scripts/browser_app.py --serve {output_dir}"
    )
    return output


def refuse_strangers(folder: Path) -> None:
    """Raise InputError if ``folder`` holds anything but a page of ours."""
    if strangers := strangers_in(folder):
        raise InputError(f"{folder}: holds something else, {strangers[0]}; move it, or give another --output_dir")


def strangers_in(folder: Path) -> list[str]:
    """What is in ``folder``, or in its place, and no file of a page that ``build_site`` made."""
    if not folder.is_dir():
        return [folder.name] * os.path.lexists(folder)
    try:
        version, files, *_ = (folder / LIST).read_text().splitlines()
        listed = [LIST, *NOT_KEPT, *json.loads(files.removeprefix("self.FILES = "))]
        listed *= version.startswith('self.VERSION = "meshnet-')
    except (OSError, ValueError, TypeError):  # none, or another's
        listed = []
    return sorted(path.name for path in folder.iterdir() if path.name not in listed or not path.is_file())


def replace_folder(output: Path, made: Path, old: Path) -> None:
    """Put ``made`` in the place of ``output``, which moves to ``old``, or back if that fails."""
    if output.exists():
        output.rename(old)
    try:
        made.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise


def add_libraries(npm: str, packages: Path, made: Path) -> None:
    """Fetch the versions of ``package-lock.json`` and copy what the page needs of them, and what their licenses are."""
    packages.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PAGE / name, packages)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if not os.access(Path.home(), os.W_OK):  # where npm keeps its cache and would stop
        command += ["--cache", str(packages / "cache"), "--logs-max=0"]
    done = subprocess.run(command, cwd=packages, capture_output=True, text=True)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("npm error")), done.stderr)
        raise InputError(f"npm ci: {one_line(reason)}; the page's libraries could not be had")
    for name, path in LIBRARIES.items():
        shutil.copy(packages / "node_modules" / path, made / name)
    licenses = ""
    for name in json.loads((PAGE / "package.json").read_text())["dependencies"]:
        about = json.loads((packages / "node_modules" / name / "package.json").read_text())
        licenses += f"{name} {about['version']}: {about.get('license', 'see its package')}\n"
    (made / "licenses.txt").write_text(licenses)


def add_page(made: Path, weights: Weights, example: bool) -> None:
    """Copy the page's own files, with what its worker and its reader need to know of the weights, and a scan to try."""
    for path in sorted(PAGE.iterdir()):
        if not path.name.startswith("package"):
            shutil.copy(path, made)
    settings = {key: weights.settings[key] for key in ("threshold", "min_volume", "flip_averaging", "norm_shift_limit")}
    card = {key: weights.card[key] for key in ("orientation", "spacing", "spatial_size", *SHOWN) if key in weights.card}
    (path,) = weights.members
    version = json.loads((PAGE.parents[2] / "metadata.json").read_text())["version"]
    made_by = {"Name": NAME, "Version": version, "Weights": Path(path).name, "WeightsSHA256": sha256(path)}
    about = {**settings, "name": Path(path).stem, "example": example, "made_by": made_by, **card}
    about["sentences"] = sentences_of(about)
    (made / "card.json").write_text(json.dumps(about, indent=1) + "\n")
    if example:
        nib.save(example_scan(), made / EXAMPLE)


def sentences_of(card: dict) -> list[tuple[str, bool]]:
    """What the page says of a model by its card: sentences, and whether each warns."""
    grid, size = ("x".join(f"{side:g}" for side in card[key]) for key in ("spatial_size", "spacing"))
    channels = f"{card['channels']} channels, " if card.get("channels") else ""
    seen = card.get("cohort", "scans that its card does not name")
    if card.get("trained_on"):
        seen = f"{len(card['trained_on'])} scans"
    model = f"Model: {card['name']}, {channels}{grid} voxels of {size} mm; trained on: {seen}."
    return [("Trained on simulated lesions.", True)] * bool(card.get("simulated")) + [(model, False)]


def example_scan(resolution: int = 2, seed: int = 3) -> nib.Nifti1Image:
    """A T2w scan as those of the default cohort, in voxels of ``resolution`` mm."""
    shape, affine = box(resolution)
    head, ranges = load_head("MNI152", resolution), RANGES["patients"] | RANGES["easy"]
    rng = np.random.default_rng(seed)
    image, _ = simulate_scan([head], [], shape, resolution, rng, ranges, volume=60_000.0)
    scan = nib.Nifti1Image((image * 600).astype(np.int16), affine)
    scan.header.set_xyzt_units("mm")
    return scan


def write_list(made: Path) -> None:
    """Write which files the page consists of, and a version that changes when one of them does."""
    digest, files = hashlib.sha256(), sorted(os.listdir(made))
    for name in files:
        digest.update((made / name).read_bytes())
    files = [name for name in [*files, LIST] if name not in NOT_KEPT]
    text = f'self.VERSION = "meshnet-{digest.hexdigest()[:16]}"\nself.FILES = {json.dumps(files)}\n'
    (made / LIST).write_text(text)
