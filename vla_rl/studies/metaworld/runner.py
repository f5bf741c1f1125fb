"""Runner of a grid: several runs at once, each in its own process; finished runs are kept, failures are reported.

    OUT/study.json              the grid, and the recipe that all runs share
    OUT/runs/NAME/              a finished run: the folder of `vla-rl train` and `study_run.json`
    OUT/runs/NAME.unfinished/   a current or interrupted run: restarted next time
    OUT/runs/NAME.failed/       a failed run: retried next time

A folder gets its final name when its run has succeeded, so there are no half-finished runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from vla_rl.errors import UserError, preflight
from vla_rl.ipc.lifeline import end_with_parent
from vla_rl.recipe import Recipe, build_recipe, find_recipe, load_recipe
from vla_rl.reporting.files import atomic_write_json, read_json_object
from vla_rl.reporting.metrics import METRICS_FILE, read_metrics
from vla_rl.reporting.text import percent
from vla_rl.run.claim import claim_folder
from vla_rl.run.signals import StopRequest
from vla_rl.studies.metaworld.grid import Grid, StudyRun
from vla_rl.studies.metaworld.pace import Expected, Underway, expect, minutes_left

STUDY_FILE = "study.json"
RUN_FILE = "study_run.json"
OUTPUT_FILE = "output.log"  # output of `vla-rl train`
RUNS = "runs"
POLL_S = 0.2
HEARTBEAT_S = 60.0
STOP_S = 20.0  # for a run to end on its own after the study is interrupted

Say = Callable[[str], None]


@dataclass(slots=True)
class Progress:
    """Progress of a grid."""

    total: int
    kept: int  # finished before this call
    finished: list[StudyRun] = field(default_factory=list)
    failed: list[StudyRun] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    run: StudyRun
    process: subprocess.Popen[bytes]
    began: float

    def share(self, out: Path, *, optimizer_steps: int) -> float:
        """Return the share of its updates that is done, according to its log points."""
        path = _aside(out, self.run, "unfinished") / METRICS_FILE
        records = read_metrics(path) if path.exists() else []
        return records[-1]["optimizer_steps"] / optimizer_steps if records else 0.0


def open_study(grid: Grid, out: Path) -> None:
    """Write `study.json`, or check that an existing one describes this study.

    Raises:
        UserError: the folder holds a study with another recipe or budget, or with a recipe that has changed since.
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
    """Return the grid of a study, and the recipe (YAML) that it began with.

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
    """Return dotted names of the fields that differ.

    Both recipes are parsed by this version: new fields never differ.
    """
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
    """Run everything that is not finished yet.

    Args:
        grid: the runs.
        out: the study's folder.
        jobs: runs at once.
        say: called with one line per event.

    Raises:
        UserError: a recipe does not fit, or a study is running in the folder; nothing was started.
        KeyboardInterrupt: Ctrl-C, SIGTERM or a closed terminal; all runs were stopped, and finished ones stay.
    """
    expected = {run: expect(grid, run) for run in grid.runs()}
    with claim_folder(out, option="--out"):
        open_study(grid, out)
        return _Session(grid, expected, out, jobs=jobs, say=say).go()


class _Session:
    """One call of a study: waiting and running runs, and results so far."""

    def __init__(self, grid: Grid, expected: Mapping[StudyRun, Expected], out: Path, *, jobs: int, say: Say) -> None:
        self._grid, self._expected, self._out, self._jobs, self._say = grid, expected, out, jobs, say
        self._waiting = [run for run in expected if not (out / RUNS / run.name / RUN_FILE).exists()]
        self._running: list[_Running] = []
        self._finished: list[Underway] = []
        self._progress = Progress(total=len(expected), kept=len(expected) - len(self._waiting))
        self._told_at = time.monotonic()

    def go(self) -> Progress:
        """Run everything that waits."""
        self._say(f"{self._progress.total} runs, {self._progress.kept} of them finished before, {self._jobs} at once")
        with StopRequest() as stop:
            try:
                while (self._waiting or self._running) and not stop.requested:
                    while self._waiting and len(self._running) < self._jobs:
                        self._running.append(_start(self._grid, self._waiting.pop(0), self._out))
                    time.sleep(POLL_S)
                    for entry in [entry for entry in self._running if entry.process.poll() is not None]:
                        self._settle(entry)
                    if time.monotonic() - self._told_at >= HEARTBEAT_S:
                        self._tell("going on")
            finally:
                _stop(self._running)
        if stop.requested:
            raise KeyboardInterrupt
        return self._progress

    def _settle(self, entry: _Running) -> None:
        """Rename the folder of a run that has ended."""
        self._running.remove(entry)
        run, folder = entry.run, _aside(self._out, entry.run, "unfinished")
        seconds, code = time.monotonic() - entry.began, entry.process.returncode
        if code == 0:
            self._finished.append(Underway(self._expected[run], seconds, share=1.0))
            atomic_write_json(folder / RUN_FILE, asdict(run) | {"seconds": seconds})
            folder.rename(self._out / RUNS / run.name)
            self._progress.finished.append(run)
        else:
            folder.rename(_aside(self._out, run, "failed"))
            self._progress.failed.append(run)
        how = "finished" if code == 0 else f"FAILED with exit code {code}"
        self._tell(f"{run.name} {how} after {seconds:.0f} s")

    def _tell(self, event: str) -> None:
        """Report one line: the event, the progress of the running runs, and the remaining time."""
        self._told_at = time.monotonic()
        underway = {
            entry.run: Underway(
                self._expected[entry.run],
                time.monotonic() - entry.began,
                entry.share(self._out, optimizer_steps=self._grid.optimizer_steps),
            )
            for entry in self._running
        }
        waiting = [self._expected[run] for run in self._waiting]
        minutes = minutes_left(self._finished, list(underway.values()), waiting, jobs=self._jobs)
        running = ", ".join(f"{run.name} {percent(state.share)}" for run, state in underway.items())
        total = self._progress.total
        self._say(
            f"[{total - len(underway) - len(waiting)}/{total}] {event}; running: {running or 'none'}; "
            f"{len(waiting)} waiting, about {minutes:.0f} min left"
        )


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
            start_new_session=True,  # Ctrl-C reaches only the study, which then stops its runs
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    return _Running(run, process, time.monotonic())


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
