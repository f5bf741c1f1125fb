"""Result of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """Result of one check."""

    name: str
    status: Status
    found: str
    allowed: str = ""  # the rule, if there is one
    fix: str = ""  # what to do; empty if nothing needs to be done


def found_and_fix(message: str) -> tuple[str, str]:
    """Split a `SimulatorError`'s message into what is wrong and the fix; the fix is empty if it names none."""
    found, _, fix = message.removeprefix("SimulatorError: ").partition(" Fix: ")
    return found.removesuffix("."), fix
