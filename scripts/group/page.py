"""A page to look at all scans of a derivative: one HTML file that opens from disk and asks nobody for anything."""

import base64
import hashlib
import io
import logging
import os
from pathlib import Path

import jinja2
import pandas
from markupsafe import Markup
from PIL import Image

from scripts.common.files import replace_file, sha256

logger = logging.getLogger("meshnet")
TEMPLATE = Path(__file__).with_name("page.html")
PAGE = Path("group", "index.html")
SHOWN = ["participant_id", "session_id", "acq", "run", "mask", "picture", "scan", "lesion_volume", "lesions"]
SHOWN += ["left_volume", "right_volume", "laterality", "quality", "unusual", "changed_by_hand", "weights", "threshold"]
SHOWN += ["min_volume", "decision", "note"]  # keys of a row
WIDTH = 880  # pixels, which a scan's picture has


def write_page(output_dir: Path, rows: list[dict], overlap_picture: Path | None = None) -> Path:
    """Write ``group/index.html``, which shows ``rows``, and return its path.

    Everything is in that one file: pictures as WebP of at most ``WIDTH`` pixels, style and script. Its policy allows no
    other script and no request. A browser keeps decisions under a hash of the folder's path, so no path is in it.

    Args:
        output_dir: the derivative, in which ``picture`` of each row lies.
        rows: one a scan; volumes in mm3; what is None is shown as n/a.
        overlap_picture: the overlap map; None where there is none.

    Raises:
        InputError: the page cannot be written.
    """
    output_dir = Path(os.path.abspath(output_dir))
    shown = [{key: row.get(key) for key in SHOWN} for row in rows]
    for row in shown:
        row["mask_sha256"] = sha256(output_dir / row["mask"])
        row["picture"] = _packed(output_dir / row["picture"]) if row["picture"] else None
    told = {"dataset": hashlib.sha256(os.fsencode(output_dir)).hexdigest()[:16], "rows": shown}
    told["overlap"] = _packed(overlap_picture) if overlap_picture else None
    data = pandas.Series(told).to_json()  # NaN is null, as JSON has none
    style, script = (TEMPLATE.with_suffix(ending).read_text("utf-8") for ending in (".css", ".js"))
    policy = f"default-src 'none'; img-src data:; style-src {_allowed(style)}; script-src {_allowed(script)}"
    parts = {"style": style, "script": script, "data": data.replace("<", "\\u003c")}  # no tag ends the script
    template = jinja2.Template(TEMPLATE.read_text("utf-8"), autoescape=True, undefined=jinja2.StrictUndefined)
    page = template.render(
        folder=output_dir.name,
        policy=f"{policy}; base-uri 'none'; form-action 'none'",
        **{name: Markup(text) for name, text in parts.items()},
    )
    with replace_file(output_dir / PAGE, "wb") as file:
        file.write(page.encode())
    return output_dir / PAGE


def _packed(path: Path) -> str | None:
    """The picture at ``path`` as the address of an image; None, with a warning, where it cannot be read."""
    try:
        picture, file = Image.open(path).convert("RGB"), io.BytesIO()
        picture.thumbnail((WIDTH, WIDTH))
        picture.save(file, "WEBP", quality=60, method=2)  # 50 kB instead of 140, in 0.07 s
    except (OSError, ValueError, SyntaxError) as error:
        logger.warning(f"{path}: cannot be read as a picture ({error}); the page shows none")
        return None
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _allowed(text: str) -> str:
    """A source of a content security policy that allows this text only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
