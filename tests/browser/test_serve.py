"""The page's server gives what browsers ask for before they grant threads."""

import threading
import urllib.request
from pathlib import Path

import pytest

from scripts.browser.serve import server_of
from scripts.common.errors import InputError


def test_files_come_with_their_types_and_the_headers_for_threads(tmp_path: Path) -> None:
    for name in ("index.html", "worker.js", "runtime.mjs", "runtime.wasm", "card.json", "scan.nii.gz"):
        (tmp_path / name).write_text("x")
    with server_of(str(tmp_path), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        for name, kind in {
            "": "text/html",
            "worker.js": "text/javascript",
            "runtime.mjs": "text/javascript",
            "runtime.wasm": "application/wasm",
            "card.json": "application/json",
            "scan.nii.gz": "application/octet-stream",
        }.items():
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{name}") as answer:
                assert answer.headers["Content-Type"] == kind
                assert answer.headers["Content-Encoding"] is None
                assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
                assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        with pytest.raises(InputError, match="--port"):
            server_of(str(tmp_path), server.server_port)
        server.shutdown()


def test_a_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no page there; make it with"):
        server_of(str(tmp_path), 0)
