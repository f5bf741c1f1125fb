"""Python code in a process of its own, with a deadline: what crashes or hangs there does not do so here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended."""

    ok: bool
    output: str  # its last line on stdout; of one that was killed at its deadline, the last that it had written
    reason: str  # if not ok, in one line


def run_python(code: str, *arguments: str, seconds: float, variables: Mapping[str, str] | None = None) -> Outcome:
    """Run code with this interpreter.

    Args:
        code: the program; it finds `arguments` in `sys.argv[1:]`.
        arguments: strings for it.
        seconds: after which it is killed.
        variables: environment variables on top of ours.
    """
    try:
        done = subprocess.run(
            [sys.executable, *_isolation(), "-c", code, *arguments],
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,  # whoever asks a question gets an end of file
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        written = late.stdout or b""  # never text, whatever was asked for
        text = written.decode(errors="replace") if isinstance(written, bytes) else written
        return Outcome(ok=False, output=_last_line(text), reason=f"no answer within {seconds:g} s")
    reason = "" if done.returncode == 0 else _reason(done)
    return Outcome(ok=done.returncode == 0, output=_last_line(done.stdout), reason=reason)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _isolation() -> list[str]:
    """Keep the current folder off the child's path where it is not on ours: a clone in it would be imported."""
    return [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = _without_ignored(done.stderr.splitlines())
    errors = [line for line in lines if "Error" in line.partition(":")[0] and not line.startswith(" ")]
    reason = (errors or lines or [f"exit code {done.returncode}"])[-1].strip()
    return re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", reason)  # the class without its module


def _without_ignored(lines: Sequence[str]) -> list[str]:
    """What was printed, without the exceptions that Python ignored: those of clean-ups after the one that matters."""
    kept: list[str] = []
    ignored = False
    for line in lines:
        if line.startswith("Exception ignored"):
            ignored = True
        elif not ignored and line.strip():
            kept.append(line)
        elif ignored and not line.startswith((" ", "Traceback")):
            ignored = False  # this was the ignored exception's last line
    return kept
