"""Weights & Biases: a service, its copy on a server of one's own, or files that are sent later."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from vla_rl.section import Text
from vla_rl.tracking.base import Ending, Session, TrackedRun, Tracker

if TYPE_CHECKING:
    from types import ModuleType

    from wandb import Run

STEP = "clocks/optimizer_steps"


class Wandb(Tracker):
    """Weights & Biases (https://docs.wandb.ai)."""

    extra: ClassVar[str] = "wandb"
    packages: ClassVar[tuple[str, ...]] = ("wandb",)

    project: Annotated[Text, Field(min_length=1, max_length=128)] = Field(
        "vla-rl", description="project in Weights & Biases"
    )
    entity: Annotated[Text, Field(min_length=1, max_length=128)] | None = Field(
        None, description="user or team; null: your default"
    )
    mode: Literal["online", "offline"] | None = Field(
        None, description="offline: only files below the run's folder; null: what WANDB_MODE says, or else online"
    )

    def begin(self, run: TrackedRun) -> Session:
        """Open a run online; without a key or a network, in files, which `wandb sync` sends later."""
        os.environ["WANDB_SILENT"] = "true"
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE", "online")
        if mode == "offline":
            return _WandbSession(wandb, self._open(wandb, run, mode="offline"), warning=None)
        try:
            return _WandbSession(wandb, self._open(wandb, run, mode=mode), warning=None)
        except (wandb.Error, OSError, ValueError) as error:
            wandb.teardown()  # forget the attempt, which may still go on
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            session = _WandbSession(wandb, self._open(wandb, run, mode="offline"), warning=None)
            session.warning = f"not online ({reason}): written to files, to be sent with {session.place}"
            return session

    def _open(self, wandb: ModuleType, run: TrackedRun, *, mode: str) -> Run:
        settings = wandb.Settings(
            console="off",  # this process prints nothing of interest
            disable_git=True,  # the manifest has the commit
            init_timeout=max(1.0, self.timeout_s / 2),  # time is left to open files instead
            silent=True,
        )
        return wandb.init(
            project=self.project,
            entity=self.entity,
            name=run.name,
            id=run.identity,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.recipe),
            mode=mode,
            settings=settings,
        )


class _WandbSession:
    """Run of Weights & Biases."""

    def __init__(self, wandb: ModuleType, run: Run, *, warning: str | None) -> None:
        self._wandb, self._run, self.warning = wandb, run, warning
        # Its own counter would refuse the points that a resumed run writes again.
        run.define_metric("*", step_metric=STEP)

    @property
    def identity(self) -> str:
        return str(self._run.id)

    @property
    def place(self) -> str:
        if self._run.url:
            return str(self._run.url)
        folder = shlex.quote(str(Path(self._run.dir).parents[1]))
        return f"wandb sync {folder}/offline-run-*-{self._run.id}"  # one folder for each session

    def log(self, values: Mapping[str, float], *, optimizer_steps: int, time: float) -> None:
        self._run.log({**values, STEP: optimizer_steps, "_timestamp": time})

    def attach(self, file: Path, *, name: str) -> None:
        if file.suffix == ".mp4":
            self._run.log({name: self._wandb.Video(str(file), format="mp4")})
        elif file.suffix == ".html":
            self._run.log({name: self._wandb.Html(file.read_text(encoding="utf-8"), inject=False)})
        else:
            self._run.save(str(file), base_path=str(file)[: -len(name)], policy="now")

    def end(self, ending: Ending) -> None:
        self._run.finish(exit_code={"finished": 0, "interrupted": 130, "failed": 1}[ending])
