"""A headless Chromium, driven over the pipe of its own protocol (DevTools), so that no other package is needed."""

import base64
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # all other hosts are refused
    "--remote-debugging-pipe",
]


class Chromium:
    """One page in a browser of its own; what it downloads goes to ``folder``.

    ``requests`` are the addresses that page and workers asked for, ``problems`` what the console calls errors.
    """

    def __init__(
        self, program: str, folder: Path, size: tuple[int, int] = (1280, 800), dark: bool = False, *flags: str
    ):
        self.folder, self.answers, self.number = folder, {}, 0
        self.requests, self.problems = [], []
        self.downloads, self.complete = {}, set()
        (their_in, self.out), (self.incoming, their_out) = os.pipe(), os.pipe()
        arguments = [program, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{their_in} 4>&{their_out}', "-", *arguments],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        self.lock, self.session = threading.Condition(), None
        threading.Thread(target=self._read, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._watch(self.session)
        self.call("Page.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
        self.resize(*size, dark)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def call(self, method: str, session: str | None = None, wait: float = 60, **parameters: Any) -> dict:
        """The protocol's answer."""
        with self.lock:
            self.number += 1
            number = self.number
        self._send(number, method, session or self.session, parameters)
        with self.lock:
            assert self.lock.wait_for(lambda: number in self.answers, wait), f"{method}: no answer in {wait} s"
            answer = self.answers.pop(number)
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        return answer["result"]

    def open(self, url: str) -> None:
        """Go to an address, and wait until the page has its model's card."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.querySelector('#about')?.textContent")

    def ask(self, script: str, wait: float = 60) -> Any:
        """The value of a script's expression, awaited."""
        answer = self.call("Runtime.evaluate", wait=wait, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str, wait: float = 120) -> Any:
        """The first value of a script's expression that is true."""
        end = time.monotonic() + wait
        while time.monotonic() < end:
            try:
                if value := self.ask(script):
                    return value
            except AssertionError as error:  # the page reloads itself once
                if "context" not in str(error) and "navigated" not in str(error):
                    raise
            time.sleep(0.05)
        shown = self.ask("document.body?.innerText")
        raise AssertionError(f"not within {wait} s: {script}\n{shown}\n{self.problems}")

    def text(self, selector: str) -> str:
        return self.ask(f"document.querySelector({json.dumps(selector)}).textContent")

    def click(self, selector: str) -> None:
        self.ask(f"document.querySelector({json.dumps(selector)}).click()")

    def drop(self, *files: Path) -> None:
        """Drop files on the page, as a hand does."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=400, data=data)

    def draw(self, *points: tuple[float, float]) -> None:
        """Press the mouse at the first of these places of the window, move it over the others, and let go."""
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        self._mouse("mouseMoved", points[0])
        self._mouse("mousePressed", points[0], **held)
        for point in points[1:]:
            self._mouse("mouseMoved", point, **held)
        self._mouse("mouseReleased", points[-1], **held | {"buttons": 0})

    def touch(self, *points: tuple[float, float]) -> None:
        """As ``draw``, with a finger."""
        for i, (x, y) in enumerate(points):
            kind = "touchMove" if i else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            time.sleep(0.05)  # what touches it is told apart from two fingers by waiting
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key; ``modifiers`` are 2 for Ctrl, 8 for Shift, and their sum."""
        told = {"key": key, "modifiers": modifiers} | ({"text": key} if len(key) == 1 and not modifiers & 2 else {})
        if key in ("Enter", "Tab"):
            told["windowsVirtualKeyCode"] = {"Enter": 13, "Tab": 9}[key]
        self.call("Input.dispatchKeyEvent", type="keyDown", **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def _mouse(self, kind: str, point: tuple[float, float], **held: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=point[0], y=point[1], **held)

    def download(self, selector: str, name: str) -> Path:
        """Click, and wait for the file."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        with self.lock:
            self.complete.discard(name)
        time.sleep(0.15)  # beyond ten in a second, Chromium drops what a page downloads
        self.click(selector)
        with self.lock:
            arrived = self.lock.wait_for(lambda: name in self.complete, 60)
        assert arrived, f"{name}: not downloaded; {os.listdir(self.folder)}"
        return path

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format=path.suffix[1:])["data"]))

    def close(self) -> None:
        self._send(0, "Browser.close", None, {})
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self.out)

    def _send(self, number: int, method: str, session: str | None, parameters: dict) -> None:
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.out, json.dumps(message).encode() + b"\0")

    def _watch(self, session: str) -> None:
        """Hear of a page's or a worker's requests and errors, and of the workers it starts; no answer is waited for."""
        attach = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
        for method, parameters in (
            ("Network.enable", {}),
            ("Runtime.enable", {}),
            ("Log.enable", {}),
            ("Target.setAutoAttach", attach),
        ):
            self._send(0, method, session, parameters)

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self.incoming, 2**20):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                self._take(message)

    def _take(self, message: dict) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if message.get("id"):
            with self.lock:
                self.answers[message["id"]] = message
                self.lock.notify_all()
        elif method == "Target.attachedToTarget" and parameters["targetInfo"]["type"] != "page":
            self._watch(parameters["sessionId"])
        elif method == "Browser.downloadWillBegin":
            self.downloads[parameters["guid"]] = parameters["suggestedFilename"]
        elif method == "Browser.downloadProgress" and parameters["state"] == "completed":
            with self.lock:
                self.complete.add(self.downloads[parameters["guid"]])
                self.lock.notify_all()
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.problems.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(parameters["exceptionDetails"]))
