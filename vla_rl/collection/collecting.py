"""Collection of demonstrations by several processes: the same files for any number of them, after any interruption.

Attempts of a task are numbered, and number, seed and task determine an episode. They start in order, and a new one
starts only while too few earlier ones have succeeded or are still being played. The attempts that count are therefore
always the first ones, up to the last success that was asked for. Asking for more continues them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from vla_rl.collection.options import CollectOptions
from vla_rl.collection.store import TaskStore, counted
from vla_rl.collection.worker import Done, Failed, Order, worker_main
from vla_rl.envs.libero.description import environment_of
from vla_rl.errors import CellFailureError, RunFailureError, UserError
from vla_rl.section import Problem
from vla_rl.types import TaskInfo

EPISODE_S = 900.0  # the longest that one episode may take, with the construction of the simulator
MOST_DEATHS = 3  # of processes, one after the other without an episode between them
POLL_S = 0.5
CLOSE_S = 5.0
LOGS = "logs"
_ROW_BYTES = 2000  # beside the pictures


@dataclass(slots=True)
class TaskTally:
    """State of one task."""

    task: TaskInfo
    kept: bool = False  # the file is complete
    was_complete: bool = False  # before this call
    attempts: dict[int, bool] = field(default_factory=dict)  # success of those that were played
    rows: int = 0  # of the successful ones that were played now
    seconds: float = 0.0  # of CPU
    played: int = 0  # now
    successes_now: int = 0

    @property
    def successes(self) -> int:
        """Return how many episodes succeeded."""
        return sum(self.attempts.values())


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a collection."""

    collected: int  # successful episodes
    wanted: int
    failed: int
    earlier: int  # of the collected ones, those of an earlier call
    task: str  # the name of the task that was played last


@dataclass(slots=True)
class Collection:
    """Result of a collection."""

    tallies: list[TaskTally]
    given_up: list[TaskTally] = field(default_factory=list)  # tasks in which the expert failed too often


def check_collection(
    options: CollectOptions, tasks: tuple[TaskInfo, ...], out: Path, *, assets: str
) -> list[TaskStore]:
    """Check that the files of a collection can be written, and return them; starts and writes nothing.

    Raises:
        UserError: every file that is in the way, and a disk that is too small.
    """
    recorded = options.recorded(assets=assets)
    stores = [TaskStore(out, task, recorded) for task in tasks]
    problems, missing, needed = [], 0, 0
    for store in stores:
        try:
            missing += not store.check()
            there = store.parts() | store.stored()
        except UserError as error:
            problems.append(str(error))
            continue
        needed += max(0, options.episodes - sum(there.values())) * bytes_per_episode(options)
    if missing:  # one task at a time is joined, while its episodes and its present file are still there
        needed += options.episodes * bytes_per_episode(options)
    place = next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        problems.append(
            str(
                Problem(
                    "--out",
                    "the disk is too small",
                    f"{free / 1e9:.1f} GB free at {place}",
                    f"about {needed / 1e9:.1f} GB for {missing} tasks",
                    "fewer --episodes, a smaller --image-size, or another disk",
                )
            )
        )
    if problems:
        raise UserError("\n".join(problems))
    return stores


def bytes_per_episode(options: CollectOptions) -> int:
    """Estimate the size of an episode of 120 control steps."""
    return 120 * (2 * 3 * options.image_size**2 + _ROW_BYTES)


def collect(
    options: CollectOptions,
    stores: list[TaskStore],
    out: Path,
    *,
    workers: int,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Collection:
    """Collect the episodes that are missing.

    Args:
        options: what to collect.
        stores: the result of `check_collection`.
        out: folder of the files.
        workers: number of processes.
        progress: called at the start and after every episode.

    Raises:
        CellFailureError: processes failed again and again; what was collected is kept.
    """
    run = _Run(options, stores, out, progress)
    try:
        run.work(workers)
    finally:
        run.close()
    return run.collection


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    link: Connection
    order: Order | None = None
    deadline: float = 0.0


class _Run:
    """Processes of a collection, and what they still have to do."""

    def __init__(
        self, options: CollectOptions, stores: list[TaskStore], out: Path, progress: Callable[[Progress], None]
    ) -> None:
        self._options = options
        self._stores = stores
        self._logs = out / LOGS
        self._progress = progress
        self._context = get_context("spawn")
        self._workers: list[_Worker] = []
        self._deaths = 0
        self._started = 0
        self._returned: list[Order] = []  # of processes that died
        self.collection = Collection([TaskTally(store.task) for store in stores])
        for store, tally in zip(stores, self.collection.tallies, strict=True):
            tally.kept = tally.was_complete = store.check()
            tally.attempts = store.stored() if tally.kept else store.begin()
            if tally.kept:
                store.discard(tally.attempts)  # left by a call that was killed when the file had just been written
        self._earlier = self._collected()

    def work(self, workers: int) -> None:
        for position in range(len(self._stores)):
            self._finish_if_done(position)
        self._report("")
        while (order := self._next()) is not None or any(worker.order for worker in self._workers):
            if order is not None and self._give(order, workers):
                continue
            if order is not None:
                self._returned.insert(0, order)
            self._hear()

    def _next(self) -> Order | None:
        """Return the next episode to play; None if none is needed before others have ended."""
        if self._returned:
            return self._returned.pop(0)
        running = [worker.order for worker in self._workers if worker.order is not None]
        for position, tally in enumerate(self.collection.tallies):
            if tally.kept or tally in self.collection.given_up:
                continue
            ours = {order.attempt for order in running if order.task == position}
            attempt = next(
                it for it in range(len(tally.attempts) + len(ours) + 1) if it not in {*tally.attempts, *ours}
            )
            earlier = sum(success for number, success in tally.attempts.items() if number < attempt)
            running_earlier = sum(number < attempt for number in ours)
            if earlier + running_earlier < self._options.episodes and attempt < self._options.most_attempts:
                return Order(position, attempt)
        return None

    def _give(self, order: Order, workers: int) -> bool:
        """Give an order to an idle process that has the task already, another idle one, or a new one."""
        idle = [worker for worker in self._workers if worker.order is None]
        if not idle and len(self._workers) >= workers:
            return False
        worker = idle[0] if idle else self._start()
        worker.order, worker.deadline = order, time.monotonic() + EPISODE_S
        worker.link.send(order)
        return True

    def _start(self) -> _Worker:
        from vla_rl.workers.process import start_child

        ours, theirs = self._context.Pipe()
        name = f"collector_{self._started}"
        self._started += 1
        process = self._context.Process(
            target=worker_main,
            args=(name, self._logs / f"{name}.log", self._options, tuple(self._stores), theirs),
            name=name,
            daemon=True,
        )
        start_child(process)
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _hear(self) -> None:
        """Wait for what the processes report, and for their deaths and deadlines."""
        busy = {worker.link: worker for worker in self._workers if worker.order is not None}
        for link in wait(list(busy), timeout=POLL_S):
            worker = busy[link]  # type: ignore[index]
            try:
                heard = worker.link.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join(CLOSE_S)  # the pipe is closed a moment before there is an exit code
                self._bury(worker, f"process {worker.process.name} died with exit code {worker.process.exitcode}")
                continue
            if isinstance(heard, Failed):
                self._bury(worker, heard.traceback)
            else:
                worker.order = None
                self._count(heard)
        for worker in [it for it in self._workers if it.order is not None and time.monotonic() > it.deadline]:
            self._bury(worker, f"{worker.process.name} took longer than {EPISODE_S:.0f} s for an episode")

    def _bury(self, worker: _Worker, reason: str) -> None:
        """End a process that failed; its episode is played again by another one.

        Raises:
            CellFailureError: the last ones failed one after the other.
        """
        worker.process.kill()
        worker.process.join(CLOSE_S)
        self._workers.remove(worker)
        assert worker.order is not None
        self._returned.append(worker.order)
        self._deaths += 1
        if self._deaths >= MOST_DEATHS:
            raise CellFailureError(
                f"{self._deaths} processes failed one after the other; see {self._logs}. What was collected is kept: "
                f"the same command continues. The last reason:\n{reason}"
            )

    def _count(self, done: Done) -> None:
        self._deaths = 0
        tally = self.collection.tallies[done.order.task]
        tally.attempts[done.order.attempt] = done.success
        tally.rows += done.rows * done.success
        tally.seconds += done.seconds
        tally.played += 1
        tally.successes_now += done.success
        self._finish_if_done(done.order.task)
        self._report(tally.task.name)

    def _finish_if_done(self, position: int) -> None:
        tally = self.collection.tallies[position]
        if tally.kept:
            return
        found = counted(tally.attempts, self._options.episodes)
        if found is not None:
            self._stores[position].finish(found, environment_of(tally.task, image_size=self._options.image_size))
            tally.attempts, tally.kept = found, True
        elif tally not in self.collection.given_up and all(
            attempt in tally.attempts for attempt in range(self._options.most_attempts)
        ):
            self.collection.given_up.append(tally)

    def _report(self, task: str) -> None:
        tallies = self.collection.tallies
        wanted = self._options.episodes
        failed = sum(len(tally.attempts) - tally.successes for tally in tallies)
        self._progress(Progress(self._collected(), wanted * len(tallies), failed, self._earlier, task))

    def _collected(self) -> int:
        """Return how many of the episodes that are asked for are there."""
        return sum(min(self._options.episodes, tally.successes) for tally in self.collection.tallies)

    def close(self) -> None:
        """End all processes: those that are idle at once, the others with a deadline, then by force."""
        for worker in self._workers:
            if worker.order is None and worker.process.is_alive():
                worker.link.send(None)
            else:
                worker.process.kill()
        deadline = time.monotonic() + CLOSE_S
        for worker in self._workers:
            worker.process.join(max(0.1, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join(CLOSE_S)
            worker.link.close()


def raise_if_given_up(collection: Collection) -> None:
    """Raise if the expert failed too often in a task.

    Raises:
        RunFailureError: names the tasks.
    """
    if collection.given_up:
        lines = [
            f"task {tally.task.task_id}, {tally.task.name}: {tally.successes} of {len(tally.attempts)} succeeded"
            for tally in collection.given_up
        ]
        raise RunFailureError(
            "the expert failed too often in\n  " + "\n  ".join(lines) + "\nThe other tasks are complete. Leave these "
            "out with --tasks, or collect with less noise (--chunk-noise, --step-noise)"
        )
