"""Runner of a study's jobs: several at once, each in its own process; finished ones are kept, failures are reported.

    FOLDER/NAME/              a finished job: what its command wrote, and its record
    FOLDER/NAME.unfinished/   a current or interrupted job: restarted or continued next time
    FOLDER/NAME.failed/       a failed job: retried next time, restarted or continued as an interrupted one

A folder gets its final name when its job has succeeded, so there are no half-finished jobs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vla_rl.errors import preflight
from vla_rl.files import atomic_write_json, read_json_object, rename
from vla_rl.ipc.parent_death import end_with_parent
from vla_rl.reporting.metrics_file import METRICS_FILE, read_metrics
from vla_rl.reporting.run_folder import RECIPE_FILE
from vla_rl.reporting.text import percent
from vla_rl.run.folder_lock import check_name, claim_folder
from vla_rl.run.signals import StopRequest
from vla_rl.studies.pace import Expected, Underway, minutes_left

OUTPUT_FILE = "output.log"  # output of a job's command
SECONDS_FILE = "seconds.json"  # of an interrupted or failed job that is continued later: what it has taken so far
ONE_CORE = "runtime.threads_per_process=1"  # jobs run beside each other: a recipe's 0 would take all cores for each
POLL_S = 0.2
HEARTBEAT_S = 60.0
STOP_S = 20.0  # for a job to end on its own after the study is interrupted
SAVE_S = 300.0  # the same for one that is continued later, which may write a checkpoint with a ring of gigabytes

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command of `vla-rl` with a folder of its own."""

    name: str  # of its folder
    arguments: Callable[[Path], Sequence[str]]  # of `vla-rl`, from the job's folder; called when the job starts
    expected: Expected
    share: Callable[[Path], float]  # share of its work that is done, from the job's folder
    record: Mapping[str, Any]  # written to its folder when it has finished, with the seconds it took
    needs: tuple[str, ...] = ()  # names of jobs that must finish first
    continues: bool = False  # an interrupted or failed one is continued in its folder; False: it starts again
    tidy: Callable[[Path], None] | None = None  # removes from a finished job's folder what nobody needs any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Jobs of a study, and where they are kept."""

    jobs: Sequence[Job]  # each comes after those that it needs
    out: Path  # the study's folder
    folder: Path  # in it, of the jobs' folders
    begin: Callable[[], None]  # writes the study's settings to its folder, before the first job
    record_file: str  # file with a job's record; its presence in a job's folder means that it has finished
    noun: str  # what the jobs are called in messages, in the plural
    what: str  # the study in a line: the names on its axes
    kind_field: str  # field of a job's record by which its price is told
    on_gpu: bool = False  # the runs compute on a GPU, all on the same one: nobody gives each a card of its own
    guess: str = ""  # why the expected times are a guess; empty: they are from rates of such runs

    def left(self) -> list[Job]:
        """Return the jobs that have not finished."""
        return [job for job in self.jobs if not (self.folder / job.name / self.record_file).exists()]


@dataclass(slots=True)
class Progress:
    """Progress of a study's jobs."""

    total: int
    kept: int  # finished before this call
    finished: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    blocked: list[Job] = field(default_factory=list)  # not started, because a job that they need failed
    interrupted: bool = False  # by Ctrl-C, SIGTERM or a closed terminal; all running jobs were stopped


@dataclass(slots=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    seconds_before: float = 0.0  # in earlier calls


def run_study(work: Work, *, at_once: int, say: Say) -> Progress:
    """Run everything that is not finished yet.

    Args:
        work: the jobs.
        at_once: jobs of one core that run at the same time.
        say: called with one line per event.

    Raises:
        UserError: as of `work.begin`, or the folder cannot be used or has a running study; nothing was started.
        KeyboardInterrupt: a second Ctrl-C, while the jobs are being stopped.
    """
    with preflight():
        check_name(work.out, option="--out")
    with claim_folder(work.out, option="--out"):
        work.begin()
        return _Session(work, at_once=at_once, say=say).go()


class _Session:
    """One call of a study: waiting and running jobs, and results so far."""

    def __init__(self, work: Work, *, at_once: int, say: Say) -> None:
        self._folder, self._record_file, self._noun = work.folder, work.record_file, work.noun
        self._at_once, self._say = at_once, say
        self._waiting = work.left()
        self._unfinished = {job.name for job in self._waiting}
        self._running: list[_Running] = []
        self._ended: list[Underway] = []
        self._progress = Progress(total=len(work.jobs), kept=len(work.jobs) - len(self._waiting))
        self._told_at = time.monotonic()

    def go(self) -> Progress:
        """Run everything that waits."""
        total, kept = self._progress.total, self._progress.kept
        self._say(f"{total} {self._noun}, {kept} of them finished before, {self._at_once} at once")
        with StopRequest() as stop:
            try:
                while (self._waiting or self._running) and not stop.requested:
                    while (job := self._next()) is not None:
                        self._waiting.remove(job)
                        self._running.append(_start(job, self._folder, cores=self._cores(job)))
                    time.sleep(POLL_S)
                    for entry in [entry for entry in self._running if entry.process.poll() is not None]:
                        self._settle(entry)
                    if time.monotonic() - self._told_at >= HEARTBEAT_S:
                        self._tell("going on")
            finally:
                _stop(self._running, self._folder)
        self._progress.interrupted = stop.requested
        return self._progress

    def _cores(self, job: Job) -> int:
        return min(job.expected.cores, self._at_once)

    def _next(self) -> Job | None:
        """Return the first job whose needs are met, if enough cores are free for it."""
        free = self._at_once - sum(self._cores(entry.job) for entry in self._running)
        ready = next((job for job in self._waiting if not self._unfinished & set(job.needs)), None)
        return ready if ready is not None and self._cores(ready) <= free else None

    def _settle(self, entry: _Running) -> None:
        """Rename the folder of a job that has ended."""
        self._running.remove(entry)
        job, folder = entry.job, aside(self._folder, entry.job, "unfinished")
        seconds, code = _seconds(entry, folder), entry.process.returncode
        if code == 0:
            self._ended.append(Underway(job.expected, seconds, share=1.0))
            (folder / SECONDS_FILE).unlink(missing_ok=True)
            atomic_write_json(folder / self._record_file, {**job.record, "seconds": seconds})
            if job.tidy is not None:  # before the renaming: what has its final name is complete, and nobody looks again
                job.tidy(folder)
            rename(folder, self._folder / job.name)
            self._unfinished.remove(job.name)
            self._progress.finished.append(job)
        else:
            _note_seconds(entry, folder)
            rename(folder, aside(self._folder, job, "failed"))
            self._progress.failed.append(job)
            self._block(job.name)
        how = "finished" if code == 0 else f"FAILED with exit code {code}"
        self._tell(f"{job.name} {how} after {seconds:.0f} s")

    def _block(self, failed: str) -> None:
        """Remove the jobs that depend on a failed one, directly or not."""
        for job in [job for job in self._waiting if failed in job.needs]:
            if job in self._waiting:
                self._waiting.remove(job)
                self._progress.blocked.append(job)
                self._block(job.name)

    def _tell(self, event: str) -> None:
        """Report one line: the event, the progress of the running jobs, and the remaining time."""
        self._told_at = time.monotonic()
        underway = {
            entry.job.name: Underway(entry.job.expected, _seconds(entry, folder), entry.job.share(folder))
            for entry in self._running
            for folder in [aside(self._folder, entry.job, "unfinished")]
        }
        waiting = [job.expected for job in self._waiting]
        minutes = minutes_left(self._ended, list(underway.values()), waiting, jobs=self._at_once)
        running = ", ".join(f"{name} {percent(state.share)}" for name, state in underway.items())
        total = self._progress.total
        self._say(
            f"[{total - len(underway) - len(waiting)}/{total}] {event}; running: {running or 'none'}; "
            f"{len(waiting)} waiting, about {minutes:.0f} min left"
        )


def _seconds(entry: _Running, folder: Path) -> float:
    """Return how long a job has taken in all calls; the metrics of a run know of calls that were killed too."""
    return max(entry.seconds_before + time.monotonic() - entry.began, _last_reading(folder, "seconds"))


def _note_seconds(entry: _Running, folder: Path) -> None:
    """Write how long a job has taken into its folder, if another call continues it there."""
    if entry.job.continues:
        atomic_write_json(folder / SECONDS_FILE, {"seconds": _seconds(entry, folder)})


def _noted_seconds(folder: Path) -> float:
    """Return what `_note_seconds` wrote; 0 if nothing did."""
    path = folder / SECONDS_FILE
    return float(read_json_object(path)["seconds"]) if path.exists() else 0.0


def share_of_updates(run_dir: Path, *, optimizer_steps: int) -> float:
    """Return the share of a run's updates that is done, according to its log points."""
    return _last_reading(run_dir, "optimizer_steps") / optimizer_steps


def share_of_env_steps(run_dir: Path, *, env_steps: int) -> float:
    """Return the share of a run's env steps that is done, according to its log points."""
    return min(1.0, _last_reading(run_dir, "env_steps") / env_steps)


def _last_reading(run_dir: Path, clock: str) -> float:
    """Return what a clock showed at a run's last log point; 0 before the first."""
    path = run_dir / METRICS_FILE
    records = read_metrics(path) if path.exists() else []
    return float(records[-1][clock]) if records else 0.0


def _start(job: Job, folder: Path, *, cores: int) -> _Running:
    own, failed = aside(folder, job, "unfinished"), aside(folder, job, "failed")
    if job.continues and failed.exists() and not own.exists():
        rename(failed, own)  # hours may be in it, and a full disk or a lack of memory is soon mended
    shutil.rmtree(failed, ignore_errors=True)
    if not job.continues:
        shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "vla_rl", *job.arguments(own)]
    with (own / OUTPUT_FILE).open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(cores)},
            start_new_session=True,  # Ctrl-C reaches only the study, which then stops its jobs
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
    return _Running(job, process, time.monotonic(), _noted_seconds(own))


def _stop(running: Sequence[_Running], folder: Path) -> None:
    for entry in running:
        entry.process.terminate()
    began = time.monotonic()
    for entry in running:
        patience = SAVE_S if entry.job.continues else STOP_S
        try:
            entry.process.wait(max(0.1, began + patience - time.monotonic()))
        except subprocess.TimeoutExpired:
            entry.process.kill()
            entry.process.wait()
        _note_seconds(entry, aside(folder, entry.job, "unfinished"))


def aside(folder: Path, job: Job, state: str) -> Path:
    """Return the folder of a job that has not finished; `state` is unfinished or failed."""
    return folder / f"{job.name}.{state}"


def resume_option(run_dir: Path) -> list[str]:
    """Return the option that continues an interrupted run; none where nothing was begun."""
    return ["--resume"] if (run_dir / RECIPE_FILE).exists() else []
