"""A headless Chromium driven through its DevTools protocol over a pipe; nothing to install beside the browser.

The protocol: https://chromedevtools.github.io/devtools-protocol. With `--remote-debugging-pipe` messages are JSON, each
ended by a zero byte; the browser reads them from descriptor 3, answers on descriptor 4, and ends when they are closed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
DEADLINE_S = 60.0
HANDED_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_browser() -> str | None:
    """The path of a browser on this machine; None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One process of a browser with one tab."""

    def __init__(self, program: str, profile: Path) -> None:
        ours_in, ours_out, theirs_in, theirs_out = _pipes()
        options = [
            "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--mute-audio",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
            "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", HANDED_OVER, str(theirs_in), str(theirs_out), program, *options],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._received, self._number = ours_in, ours_out, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            left = deadline - time.monotonic()
            assert left > 0, "the browser does not answer"
            if select.select([self._in], [], [], left)[0]:
                block = os.read(self._in, 1 << 20)
                assert block, "the browser has ended"
                self._received += block
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def open(
        self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False, script: bool = True
    ) -> None:
        """Open a page anew, in a window of this size."""
        self.events.clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + DEADLINE_S
        while not any(each.get("method") == "Page.loadEventFired" for each in self.events):
            self.events.append(self._next(deadline))

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, or of what it promises."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true in the page."""
        deadline = time.monotonic() + DEADLINE_S
        while not self.value(f"Boolean({condition})"):
            assert time.monotonic() < deadline, (
                f"in vain: {condition}; the page shows\n{self.value('document.body.innerText')}"
            )
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        codes = {"Tab": 9, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39, " ": 32}
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def move_to(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def of_events(self, method: str) -> list[dict[str, Any]]:
        """What events of a kind told since the page was opened."""
        self.value("0")  # what came before is among the events now
        return [each["params"] for each in self.events if each.get("method") == method]

    def faults(self) -> list[str]:
        """Errors of scripts, and whatever the browser refused, since the page was opened."""
        found = [each["exceptionDetails"]["text"] for each in self.of_events("Runtime.exceptionThrown")]
        entries = [each["entry"] for each in self.of_events("Log.entryAdded")]
        return found + [f"{entry['text']} {entry.get('url', '')}" for entry in entries if entry["level"] == "error"]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since it was opened."""
        return [each["request"]["url"] for each in self.of_events("Network.requestWillBeSent")]

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))


def _pipes() -> tuple[int, int, int, int]:
    """Our reading and writing end, and the browser's: none of them among the numbers that it expects its own at."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (ours_in, ours_out, theirs_in, theirs_out)]
    for end in (ours_in, ours_out, theirs_in, theirs_out):
        os.close(end)
    return high[0], high[1], high[2], high[3]
