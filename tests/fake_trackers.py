"""A tracker for tests: it notes what it is told in a file, and misbehaves as it is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar, Literal

from vla_rl.tracking import Session, TrackedRun, Tracker

Trouble = Literal[
    "", "no_service", "hangs_at_begin", "hangs_at_log", "hangs_at_end", "fails_now_and_then", "crashes", "asks",
    "is_interrupted_at_end",
]  # fmt: skip


class Fake(Tracker):
    """A service in a file."""

    extra: ClassVar[str] = "fake"
    packages: ClassVar[tuple[str, ...]] = ("pytest",)

    file: str
    trouble: Trouble = ""

    def begin(self, run: TrackedRun) -> Session:
        session = FakeSession(self, identity=run.identity or f"session-{os.getpid()}")
        session.note("begin", name=run.name, earlier=run.identity, recipe=dict(run.recipe))
        if self.trouble == "no_service":
            raise ConnectionError("the service is closed\non Sundays")
        if self.trouble == "hangs_at_begin":
            hang()
        if self.trouble == "asks":
            session.note("asked", answer=sys.stdin.read() + os.read(0, 100).decode())
            try:
                os.close(os.open("/dev/tty", os.O_RDWR))
            except OSError as error:
                session.note("no terminal", error=error.errno)
        return session


class FakeSession:
    warning = None

    def __init__(self, fake: Fake, *, identity: str) -> None:
        self._fake, self.identity, self.place = fake, identity, f"see {fake.file}"
        self._points = 0

    def note(self, event: str, **facts: object) -> None:
        with Path(self._fake.file).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **facts}) + "\n")

    def log(self, values, *, optimizer_steps, time):
        self._points += 1
        match self._fake.trouble:
            case "hangs_at_log":
                helper = subprocess.Popen(["sleep", "3600"])
                self.note("hangs", pids=[os.getpid(), helper.pid])
                hang()
            case "fails_now_and_then" if self._points % 2:
                raise RuntimeError(f"point {self._points} is not wanted")
            case "crashes":
                os._exit(3)
        self.note("log", values=values, optimizer_steps=optimizer_steps, time=time)

    def attach(self, file, *, name):
        self.note("attach", name=name, there=file.is_file())

    def end(self, ending):
        self.note("end", ending=ending)
        if self._fake.trouble == "is_interrupted_at_end":
            os.kill(os.getppid(), signal.SIGINT)
        if self._fake.trouble in ("hangs_at_end", "is_interrupted_at_end"):
            hang()


def hang() -> None:
    while True:
        time.sleep(60)


def events(file: Path, kind: str = "") -> list[dict]:
    """What the service was told, in order."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [event for event in map(json.loads, lines) if not kind or event["event"] == kind]
