"""What one phase writes down: figures and checks, on disk as soon as they are known.

A phase that hangs or is killed half-way has still told what it knew. Standard library alone.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Setting:
    """What a phase is told."""

    size: str  # 7b, mid or tiny
    limit_s: float  # it is killed after that
    scratch: Path  # a folder that is removed afterwards
    root: Path  # of the repository

    @property
    def checkpoint(self) -> str:
        """The weights, by the program's own name for them."""
        return "random-7b" if self.size == "7b" else "tiny"

    @property
    def image_size(self) -> int | None:
        """Pixels a side; `mid` is the tiny network with the real images, so with the real length of sequences."""
        return 224 if self.size == "mid" else None


@dataclass
class Record:
    """The figures of one phase; every change is written to `path` at once.

    Example:
        >>> record.put("build_s", 11.2)
        >>> record.check("memory came back", held == 0, f"{held} bytes are still held")
    """

    path: Path
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    def put(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Note a figure."""
        self.figures[name] = value
        self.write()

    def check(self, what: str, holds: bool, found: str) -> None:
        """Note whether something holds; one that does not makes the phase fail when it ends."""
        self.checks.append({"what": what, "holds": bool(holds), "found": found})
        self.write()

    @property
    def broken(self) -> list[str]:
        """What does not hold, in words."""
        return [f"{check['what']}: {check['found']}" for check in self.checks if not check["holds"]]

    def write(self) -> None:
        """Put everything on disk, whole or not at all."""
        write_json(self.path, {"figures": self.figures, "checks": self.checks})


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401
    """Write a JSON file, whole or not at all; numbers that are not finite become strings.

    Raises:
        OSError: the disk does not take it.
    """
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)  # noqa: PTH105 - atomic, by name


def finite(value: Any) -> Any:  # noqa: ANN401
    """The same value as JSON can hold it: nan and infinity as strings, tuples as lists, keys as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
