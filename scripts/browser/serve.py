"""Python's server knows neither the headers without which a browser gives a page one thread, nor all types of files."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from scripts.common.errors import InputError

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a page that was built again is seen
}
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


class Handler(SimpleHTTPRequestHandler):
    """Gives the files of a folder, and says nothing of each request."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES | {".gz": "application/octet-stream"}

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing."""


def server_of(site: str, port: int) -> ThreadingHTTPServer:
    """A server of the page in the folder ``site``, on this machine only.

    Raises:
        InputError: no page there, or the port is taken.
    """
    if not (Path(site) / "index.html").is_file():
        raise InputError(f"{site}: no page there; make it with: python scripts/browser_app.py --output_dir {site}")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=site))
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: cannot be used ({error}); give another") from error


def serve(site: str, port: int) -> None:
    """Serve the page until Ctrl+C."""
    with server_of(site, port) as server:
        print(f"http://localhost:{server.server_port} (Ctrl+C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
