"""Python code in a process of its own, with a deadline, so that crashes and hangs stay there."""

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
    """Result of a child process."""

    ok: bool
    output: str  # its last line on stdout, also if it was killed at its deadline
    reason: str  # one line; empty if ok


def run_python(code: str, *arguments: str, seconds: float, variables: Mapping[str, str] | None = None) -> Outcome:
    """Run code with this interpreter.

    Args:
        code: the program; it finds `arguments` in `sys.argv[1:]`.
        arguments: strings for it.
        seconds: time after which it is killed.
        variables: environment variables added to this process's.
    """
    try:
        done = subprocess.run(
            [sys.executable, *_isolation(), "-c", code, *arguments],
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,  # a prompt gets an end of file
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        written = late.stdout or b""  # bytes, even in text mode
        text = written.decode(errors="replace") if isinstance(written, bytes) else written
        return Outcome(ok=False, output=_last_line(text), reason=f"no answer within {seconds:g} s")
    reason = "" if done.returncode == 0 else _reason(done)
    return Outcome(ok=done.returncode == 0, output=_last_line(done.stdout), reason=reason)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _isolation() -> list[str]:
    """Keep the current folder off the child's path unless it is on ours: a clone in it would be imported."""
    return [] if {"", str(Path.cwd())} & set(sys.path) else ["-P"]


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    lines = _without_ignored(done.stderr.splitlines())
    errors = [line for line in lines if "Error" in line.partition(":")[0] and not line.startswith(" ")]
    reason = (errors or lines or [f"exit code {done.returncode}"])[-1].strip()
    return re.sub(r"^(?:\w+\.)+(?=\w+(?::|$))", "", reason)  # class name without its module


def _without_ignored(lines: Sequence[str]) -> list[str]:
    """Return the output without exceptions that Python ignored in clean-ups after the relevant one."""
    kept: list[str] = []
    ignored = False
    for line in lines:
        if line.startswith("Exception ignored"):
            ignored = True
        elif not ignored and line.strip():
            kept.append(line)
        elif ignored and not line.startswith((" ", "Traceback")):
            ignored = False  # last line of the ignored exception
    return kept
