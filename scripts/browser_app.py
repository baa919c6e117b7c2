"""Make the page that segments in a browser, or serve it: ``python scripts/browser_app.py --help``."""

import logging
import sys
import warnings
from pathlib import Path

if __name__ == "__main__":  # run as a command, Python looks in scripts/ instead of the bundle's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.browser.serve import serve as serve_site
from scripts.common.command import run_command

BUNDLE = Path(__file__).resolve().parents[1]


def browser_app(
    output_dir: str = "site",
    ckpt_path: str = str(BUNDLE / "models" / "model.pt"),
    example: bool = True,
    serve: str | None = None,
    port: int = 8000,
) -> None:
    """Make a static page that segments scans in the browser; nothing leaves the machine of who looks at it.

    Args:
        output_dir: the page's folder, for any static host.
        ckpt_path: weights with their card beside them.
        example: add a simulated scan to try.
        serve: instead, the folder of a page to serve on this machine.
        port: where to serve it; 0 for any that is free.
    """
    if serve is not None:
        return serve_site(str(serve), port)
    from scripts.browser.site import build_site  # torch and MONAI are not needed to serve

    warnings.simplefilter("ignore", FutureWarning)  # torch's exporter, of torch, and of torchvision
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    print("Fetching the viewer and the runtime, simulating the example, exporting the network ...", flush=True)
    build_site(str(output_dir), str(ckpt_path), example)


if __name__ == "__main__":
    run_command(browser_app)
