"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    allowed: str = ""  # the rule, where there is one
    fix: str = ""  # what to do; empty if nothing needs doing


def found_and_fix(message: str) -> tuple[str, str]:
    """What a `SimulatorError` says is wrong, and the fix; an empty fix of an error that names none."""
    found, _, fix = message.removeprefix("SimulatorError: ").partition(" Fix: ")
    return found.removesuffix("."), fix
