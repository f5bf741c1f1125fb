"""Interface of every tracker: a service, or a program on this machine, that collects the metrics of runs.

A tracker is one class in one file: its fields are its section of a recipe, and `begin` opens a run with its library. A
process of its own does that (`vla_rl.run.tracker_process`), so a session may wait and fail as its library does. The
library is imported inside `begin` alone: a recipe is loaded without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from vla_rl.section import Seconds, Section

Ending = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Facts that a tracker shows about a run."""

    name: str  # of the recipe; several runs may share it
    folder: Path  # of the run, absolute
    recipe: Mapping[str, Any]  # every field, as plain values
    identity: str | None  # what an earlier session of this run returned; None: there was none


class Session(Protocol):
    """One run, open in a tracker."""

    @property
    def identity(self) -> str:
        """Return what `TrackedRun.identity` must be for a later session to go on with the same run."""
        ...

    @property
    def place(self) -> str:
        """Return where people find the run: an address, a folder or a command."""
        ...

    @property
    def warning(self) -> str | None:
        """Return what a user should know about the way the session was opened; None if there is nothing."""
        ...

    def log(self, values: Mapping[str, float], *, optimizer_steps: int, time: float) -> None:
        """Take one log point.

        Args:
            values: metrics and `clocks/*` by name; they may be infinite or NaN. A point may come twice, after a crash.
            optimizer_steps: its place on the axis.
            time: seconds since 1970 at which it was written.
        """
        ...

    def attach(self, file: Path, *, name: str) -> None:
        """Take a file: a video (.mp4), a page (.html), or anything else.

        Args:
            file: absolute.
            name: its path below the run's folder, with slashes.
        """
        ...

    def end(self, ending: Ending) -> None:
        """Send what is left, and end the session."""
        ...


class Tracker(Section, ABC):
    """Tracker with its settings: a section of a recipe, and what opens a run."""

    extra: ClassVar[str]  # of pyproject.toml, which installs the library
    packages: ClassVar[tuple[str, ...]]  # names on the package index, any one of which has the library

    timeout_s: Seconds = Field(
        60.0, description="longest time for one log point or file; a slower tracker is stopped, and the run continues"
    )
    finish_s: Seconds = Field(300.0, description="longest wait at the end of the run for data that is still to be sent")

    @property
    def destination(self) -> dict[str, Any]:
        """Return the fields that say where runs go: with others, a run that is resumed begins another tracked run."""
        return self.model_dump(mode="json", exclude={"timeout_s", "finish_s", "mode"})

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether the library is installed. A folder of its name, such as `./wandb`, is not the library."""
        return any(_is_installed(package) for package in cls.packages)

    @abstractmethod
    def begin(self, run: TrackedRun) -> Session:
        """Open a run, or the one that an earlier session opened. Asks nothing; anything that fails raises."""


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
