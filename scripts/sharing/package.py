"""The folder of a pull request to the Model Zoo, and its zip: the bundle without tests and benchmarks."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.common.errors import InputError
from scripts.common.files import sha256
from scripts.weights.card import read_card

BUNDLE = Path(__file__).resolve().parents[2]
NAME = "meshnet_stroke_lesion_segmentation"
PARTS = {"LICENSE", "configs", "docs", "models", "scripts"}
UNIT_TEST = BUNDLE / "tests" / "sharing" / "zoo.py"
# Of use to who changes the bundle, not to who uses it.
LEFT_OUT = ("configs/benchmark", "configs/overlays/benchmark", "docs/experiments", "scripts/benchmark")


def package(output_dir: str, weights_url: str | None = None) -> None:
    """Write the folder of a pull request to the Model Zoo, the zip of the same, and the unit test for the Zoo's ``ci``.

    ``channels`` in ``configs/train.json`` is that of the weights, which ``monai.bundle.load`` puts into that config's
    network.

    Args:
        output_dir: folder for ``meshnet_stroke_lesion_segmentation`` and its zip; earlier ones there are replaced.
        weights_url: folder of a web host that has the weights' files. They are left out then; ``large_files.yml`` lists
            them with their SHA-256, for ``monai.bundle download_large_files``.

    Raises:
        InputError: no weights, a folder of that name that holds other things, or one that cannot be written.
    """
    card, files, output = read_card(str(BUNDLE / "models" / "model.pt")), _files(), Path(output_dir).absolute()
    made, archive = output / NAME, output / f"{NAME}.zip"
    try:
        others = {path.name for path in made.iterdir()} - PARTS - {"large_files.yml"} if made.exists() else ()
        if others:
            raise InputError(f"{made}: holds {min(others)}, which no package does; give another --output_dir")
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output) as temporary:
            folder = Path(temporary) / NAME
            for path in files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(BUNDLE / path, folder / path)
            for page in folder.rglob("*.md"):  # experiments are left out, and so are links to them
                page.write_text(re.sub(r"\[([^\]]+)\]\((?:\.\./docs/)?experiments/[^)]+\)", r"\1", page.read_text()))
            if weights_url:
                _list_weights(folder, weights_url)
            train = folder / "configs" / "train.json"
            text = train.read_text()
            ours, theirs = json.loads(text)["channels"], card["network_def"]["channels"]
            train.write_text(text.replace(f'"channels": {ours},', f'"channels": {theirs},', 1))
            zipped = shutil.make_archive(str(folder), "zip", temporary, NAME)
            shutil.rmtree(made, ignore_errors=True)
            folder.rename(made)
            Path(zipped).replace(archive)
            if UNIT_TEST.is_file():  # a package has no tests
                shutil.copy(UNIT_TEST, output / f"test_{NAME}.py")
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); give another --output_dir") from error
    print(f"Written: {made} and {archive.name} ({archive.stat().st_size / 1e6:.1f} MB)")


def _list_weights(folder: Path, url: str) -> None:
    """Put the names of weights into ``large_files.yml`` (JSON is YAML, too) in place of the files."""
    entries = []
    for path in sorted(folder.glob("models/*.pt")):
        place = {"path": f"models/{path.name}", "url": f"{url.rstrip('/')}/{path.name}"}
        entries.append({**place, "hash_val": sha256(path), "hash_type": "sha256"})
        path.unlink()
    (folder / "large_files.yml").write_text(json.dumps({"large_files": entries}, indent=4) + "\n")


def _files() -> list[Path]:
    """The bundle's files, relative to it: what git tracks, or, where this is no checkout, all but caches."""
    listed = subprocess.run("git ls-files -z", shell=True, cwd=BUNDLE, capture_output=True, text=True).stdout
    paths = [Path(name) for name in listed.split("\0") if name] or [p.relative_to(BUNDLE) for p in BUNDLE.rglob("*")]
    paths = [p for p in paths if p.parts[0] in PARTS and "__pycache__" not in p.parts and (BUNDLE / p).is_file()]
    return sorted(p for p in paths if not p.as_posix().startswith(LEFT_OUT))
