"""Trackio: metrics in files on this machine, or in a Space of the Hugging Face hub."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from vla_rl.section import Text
from vla_rl.tracking.base import Ending, Session, TrackedRun, Tracker

if TYPE_CHECKING:
    from types import ModuleType

    from trackio import Run


class Trackio(Tracker):
    """Trackio (https://github.com/gradio-app/trackio)."""

    extra: ClassVar[str] = "trackio"
    packages: ClassVar[tuple[str, ...]] = ("trackio",)

    project: Annotated[Text, Field(pattern=r"^[\w-]{1,128}$")] = Field(
        "vla-rl", description="project in Trackio: letters, digits, _ and -"
    )
    space: Annotated[Text, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")] | None = Field(
        None, description="Space on the hub that also gets the metrics, as user/name; null: only this machine"
    )

    def begin(self, run: TrackedRun) -> Session:
        """Open a run below TRACKIO_DIR, which Trackio's own dashboard reads."""
        import trackio

        # Trackio knows a run by its name, and several runs of a recipe share theirs.
        name = run.identity or f"{run.name}-{uuid.uuid4().hex[:8]}"
        opened = trackio.init(
            project=self.project,
            name=name,
            space_id=self.space,
            config=dict(run.recipe),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return _TrackioSession(trackio, opened, name=name, project=self.project)


class _TrackioSession:
    """Run of Trackio."""

    warning = None

    def __init__(self, trackio: ModuleType, run: Run, *, name: str, project: str) -> None:
        self._trackio, self._run, self.identity = trackio, run, name
        self.place = f"trackio show --project {project}"
        self._newest = 0

    def log(self, values: Mapping[str, float], *, optimizer_steps: int, time: float) -> None:  # noqa: ARG002 - it takes none
        self._newest = optimizer_steps
        self._run.log(dict(values), step=optimizer_steps)

    def attach(self, file: Path, *, name: str) -> None:
        if file.suffix == ".mp4":
            self._run.log({name: self._trackio.Video(str(file))}, step=self._newest)
        elif file.suffix == ".html":
            self._run.log({name: self._trackio.Html(file.read_text(encoding="utf-8"))}, step=self._newest)
        # Other files belong to a project there, not to a run: those of the next run would replace them.

    def end(self, ending: Ending) -> None:
        self._run.log({"ended": ending}, step=self._newest)
        self._run.finish()
