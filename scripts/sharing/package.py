"""The Model Zoo takes a folder without links and tests: this makes it, and its zip, from what git tracks."""

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from scripts.common.errors import InputError
from scripts.networks.weights import read_card

BUNDLE = Path(__file__).resolve().parents[2]
NAME = "meshnet_stroke_lesion_segmentation"
PARTS = ("LICENSE", "configs", "docs", "models", "scripts")
LARGE = 25_000_000  # bytes; the Zoo wants a link to larger files, in large_files.yml


def package(output_dir: str, url: str | None = None) -> None:
    """Write the folder of a pull request to the Model Zoo and the zip of the same.

    ``configs/metadata.json`` is the file instead of a link, and ``channels`` in ``configs/train.json`` is that of the
    weights, which ``monai.bundle.load`` puts into that config's network.

    Args:
        output_dir: folder for ``meshnet_stroke_lesion_segmentation`` and its zip; earlier ones there are replaced.
        url: where files of more than 25 MB will lie, for ``large_files.yml``.

    Raises:
        InputError: no weights, or large files without ``--url``.
    """
    card, output = read_card(str(BUNDLE / "models" / "model.pt")), Path(output_dir).absolute()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as temporary:
        folder = Path(temporary) / NAME
        for path in _files():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BUNDLE / path, target)  # follows the link
        train = folder / "configs" / "train.json"
        text, ours = train.read_text(), f'"channels": {json.loads(train.read_text())["channels"]},'
        train.write_text(text.replace(ours, f'"channels": {card["channels"]},', 1))
        _link_large_files(folder, url)
        archive = shutil.make_archive(str(Path(temporary) / NAME), "zip", temporary, NAME)
        shutil.rmtree(output / NAME, ignore_errors=True)
        folder.rename(output / NAME)
        Path(archive).replace(output / f"{NAME}.zip")
    print(
        f"Written: {output / NAME} and {NAME}.zip ({(output / NAME).with_suffix('.zip').stat().st_size / 1e6:.1f} MB)"
    )


def _files() -> list[Path]:
    """The bundle's files, relative to it: what git tracks, or, where this is no checkout, all but caches."""
    listed = subprocess.run(["git", "ls-files", "-z", *PARTS], cwd=BUNDLE, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [Path(name) for name in listed.stdout.split("\0") if name]
    else:
        paths = [p.relative_to(BUNDLE) for part in PARTS for p in [BUNDLE / part, *(BUNDLE / part).rglob("*")]]
    return sorted(p for p in paths if (BUNDLE / p).is_file() and "__pycache__" not in p.parts)


def _link_large_files(folder: Path, url: str | None) -> None:
    large = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size > LARGE]
    if not large:
        return
    names = ", ".join(str(path.relative_to(folder)) for path in large)
    if url is None:
        raise InputError(f"{names}: larger than the Model Zoo's 25 MB; say with --url where they will lie")
    lines = ["large_files:"]
    for path in large:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines += [f'  - path: "{path.relative_to(folder)}"', f'    url: "{url.rstrip("/")}/{path.name}"']
        lines += [f'    hash_val: "{digest}"', '    hash_type: "sha256"']
        path.unlink()
    (folder / "large_files.yml").write_text("\n".join(lines) + "\n")
