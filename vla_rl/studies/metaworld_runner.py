"""Runs a grid: several runs at once, each a process of its own; what is done is kept, what fails is told.

    OUT/study.json              the grid, and the recipe that all runs share
    OUT/runs/NAME/              a finished run: the folder of `vla-rl train` and `study_run.json`
    OUT/runs/NAME.unfinished/   one that runs now, or was interrupted: begun again next time
    OUT/runs/NAME.failed/       one that failed: tried again next time

A folder gets its final name when its run has ended well, so a run is finished or it is not.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.ipc.lifeline import end_with_parent
from vla_rl.recipe import Recipe, build_recipe, find_recipe, load_recipe
from vla_rl.reporting.files import atomic_write_json, read_json_object
from vla_rl.run.claim import claim_folder
from vla_rl.run.signals import StopRequest
from vla_rl.studies.metaworld import Grid, StudyRun

STUDY_FILE = "study.json"
RUN_FILE = "study_run.json"
OUTPUT_FILE = "output.log"  # what `vla-rl train` said
RUNS = "runs"
POLL_S = 0.2
START_S, ENV_STEPS_PER_S, SAMPLES_PER_S = 8.0, 1500.0, 20_000.0  # of one run on one core, measured
STOP_S = 20.0  # for a run to end by itself when the study is interrupted

Say = Callable[[str], None]


@dataclass(slots=True)
class Progress:
    """What came of a grid so far."""

    total: int
    kept: int  # finished before this call
    finished: list[StudyRun] = field(default_factory=list)
    failed: list[StudyRun] = field(default_factory=list)
    seconds: float = 0.0

    def left(self) -> int:
        """Runs that have not ended."""
        return self.total - self.kept - len(self.finished) - len(self.failed)

    def minutes_left(self) -> float:
        """From the pace so far."""
        ended = len(self.finished) + len(self.failed)
        return self.left() * self.seconds / max(1, ended) / 60


@dataclass(slots=True)
class _Running:
    run: StudyRun
    process: subprocess.Popen[bytes]
    began: float


def estimate(grid: Grid, *, jobs: int) -> str:
    """One line: how many runs, how much experience, about how long.

    The rates are those of one core of a 2-core cloud machine with both cores at work; others differ by a factor.
    """
    seconds = 0.0
    for run in grid.runs():
        recipe = grid.recipe_of(run)
        segments = recipe.budget.optimizer_steps * recipe.learner.micro_batch * recipe.learner.accumulation
        consumed = segments * recipe.replay.segment_length
        env_steps = recipe.replay.min_decisions + consumed / recipe.replay.replay_ratio
        seconds += START_S + env_steps / ENV_STEPS_PER_S + consumed / SAMPLES_PER_S
    hours = seconds / jobs / 3600
    return f"{len(grid.runs())} runs, {jobs} at once: about {hours:.1f} h ({seconds / 3600:.1f} core hours)"


def open_study(grid: Grid, out: Path) -> None:
    """Write `study.json`, or check that the study there is this one.

    Raises:
        UserError: the folder holds a study with another recipe or budget, or of a recipe that was changed since.
    """
    path = out / STUDY_FILE
    base = load_recipe(find_recipe(grid.recipe))
    settings = grid.settings() | {"base": base.dump_yaml()}
    if path.exists():
        with preflight():
            there, began_with = read_study(out)
        for name, before in there.settings().items():
            if name in ("recipe", "optimizer_steps") and before != settings[name]:
                raise UserError(
                    f"--out: {out} holds a study with {name} {before}, and this one has {settings[name]}: runs of "
                    "both would not be comparable. Choose another folder"
                )
        changed = _changed_fields(build_recipe(began_with, source=str(path)), base)
        if changed:
            raise UserError(
                f"--out: the recipe {grid.recipe} has changed since the study in {out} began, in {', '.join(changed)}: "
                "runs of both would not be comparable. Choose another folder"
            )
        for axis in ("tasks", "surrogates", "regimes"):  # a study may grow
            settings[axis] = list(dict.fromkeys([*getattr(there, axis), *settings[axis]]))
        settings["seeds"] = max(there.seeds, settings["seeds"])
    atomic_write_json(path, settings)


def read_study(out: Path) -> tuple[Grid, str]:
    """The grid of a study, and the recipe (YAML) that it began with.

    Raises:
        ValueError: `study.json` is missing or broken; names it.
    """
    path = out / STUDY_FILE
    values = read_json_object(path)
    match values:
        case {"tasks": [*tasks], "surrogates": [*surrogates], "regimes": [*regimes], "seeds": int(seeds),
              "optimizer_steps": int(optimizer_steps), "recipe": str(recipe), "base": str(base)}:  # fmt: skip
            try:
                return Grid(tuple(tasks), tuple(surrogates), tuple(regimes), seeds, optimizer_steps, recipe), base
            except UserError as error:
                raise ValueError(f"{path}: {error}") from error
    raise ValueError(
        f"{path}: expected the settings of a study (tasks, surrogates, regimes, seeds, optimizer_steps, recipe, base), "
        f"found {', '.join(values) or 'nothing'}; put the file back, or begin the study in another folder"
    )


def _changed_fields(before: Recipe, after: Recipe) -> list[str]:
    """Dotted names of the fields that differ. Both are as this version reads them: a field it added says nothing."""
    old, new = before.model_dump(), after.model_dump()
    found: list[str] = []
    for section in sorted(old.keys() | new.keys()):
        ours, theirs = old.get(section), new.get(section)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            fields = sorted(ours.keys() | theirs.keys())
            found += [f"{section}.{name}" for name in fields if ours.get(name) != theirs.get(name)]
        elif ours != theirs:
            found.append(section)
    return found


def run_grid(grid: Grid, out: Path, *, jobs: int, say: Say) -> Progress:
    """Run what is not finished yet.

    Args:
        grid: the runs.
        out: the study's folder.
        jobs: runs at once.
        say: told one line per event.

    Raises:
        UserError: a recipe does not fit, or a study is running in the folder; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; all runs were stopped, and finished ones stay.
    """
    runs = grid.runs()
    for run in runs:
        grid.recipe_of(run)
    with claim_folder(out, option="--out"):
        open_study(grid, out)
        return _run_claimed(grid, runs, out, jobs=jobs, say=say)


def _run_claimed(grid: Grid, runs: Sequence[StudyRun], out: Path, *, jobs: int, say: Say) -> Progress:
    waiting = [run for run in runs if not (out / RUNS / run.name / RUN_FILE).exists()]
    progress = Progress(total=len(runs), kept=len(runs) - len(waiting))
    say(f"{len(runs)} runs, {progress.kept} of them finished before, {jobs} at once")
    began = time.monotonic()
    running: list[_Running] = []
    with StopRequest() as stop:
        try:
            while (waiting or running) and not stop.requested:
                while waiting and len(running) < jobs:
                    running.append(_start(grid, waiting.pop(0), out))
                time.sleep(POLL_S)
                for entry in [entry for entry in running if entry.process.poll() is not None]:
                    running.remove(entry)
                    _settle(entry, out, progress)
                    progress.seconds = time.monotonic() - began
                    say(_line(entry, progress, len(running)))
        finally:
            _stop(running)
    if stop.requested:
        raise KeyboardInterrupt
    return progress


def _start(grid: Grid, run: StudyRun, out: Path) -> _Running:
    folder = _aside(out, run, "unfinished")
    for leftover in (folder, _aside(out, run, "failed")):
        shutil.rmtree(leftover, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "vla_rl", "train", grid.recipe, *grid.overrides(run), "--run-dir", str(folder)]
    with (folder / OUTPUT_FILE).open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches the study, which then stops its runs
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    return _Running(run, process, time.monotonic())


def _settle(entry: _Running, out: Path, progress: Progress) -> None:
    """Give the folder of a run that has ended its name."""
    run, folder = entry.run, _aside(out, entry.run, "unfinished")
    if entry.process.returncode != 0:
        folder.rename(_aside(out, run, "failed"))
        progress.failed.append(run)
        return
    atomic_write_json(folder / RUN_FILE, asdict(run) | {"seconds": time.monotonic() - entry.began})
    folder.rename(out / RUNS / run.name)
    progress.finished.append(run)


def _line(entry: _Running, progress: Progress, running: int) -> str:
    ended = progress.kept + len(progress.finished) + len(progress.failed)
    how = "finished" if entry.process.returncode == 0 else f"FAILED with exit code {entry.process.returncode}"
    return (
        f"[{ended}/{progress.total}] {entry.run.name} {how} after {time.monotonic() - entry.began:.0f} s; "
        f"{running} running, {progress.left() - running} waiting, about {progress.minutes_left():.0f} min left"
    )


def _stop(running: Sequence[_Running]) -> None:
    for entry in running:
        entry.process.terminate()
    deadline = time.monotonic() + STOP_S
    for entry in running:
        try:
            entry.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            entry.process.kill()
            entry.process.wait()


def _aside(out: Path, run: StudyRun, state: str) -> Path:
    return out / RUNS / f"{run.name}.{state}"
