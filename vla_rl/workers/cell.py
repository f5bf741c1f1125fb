"""Processes of one cell, and their supervision.

    rank process (learner, parent of all) ── Cell ──► inference worker      a failure ends the run, with its traceback;
                                               │                            none if the env workers decide themselves
                                               └────► env workers           a dead or hung one is restarted and counted,
                                                                            one that cannot start ends the run

`watch()` runs in a thread of the rank process. The first failure is stored and raised where the learner asks for it
(`raise_if_failed`); only env workers are restarted, `max_restarts` times in total.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import assert_never

from vla_rl.errors import CellFailureError
from vla_rl.ipc.counters import CellCounters, EnvWorkerPhase
from vla_rl.ipc.shared_arrays import SharedArraysHandle
from vla_rl.replay.ring import RingHandle
from vla_rl.workers.deciding_worker import deciding_worker_main
from vla_rl.workers.env_worker import EnvWorkerLinks, EnvWorkerSettings, env_worker_main
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord
from vla_rl.workers.inference_worker import InferenceLinks, InferenceSettings, WeightLinks, inference_worker_main
from vla_rl.workers.messages import JobRequest, NoMoreJobs, StartRefusal, answer_worker, hear_worker
from vla_rl.workers.process import start_child

WATCH_PERIOD_S = 0.1
PAUSE_S = 2.0  # between two looks; after one as long as this everything stood still, not the children alone
COLLECT_POLL_S = 0.002
STACK_DUMP_S = 0.5  # time for a hung child to write its stack
CLOSE_S = 10.0  # time for children to stop on their own

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CellLimits:
    """Deadlines in seconds and the restart budget."""

    step_timeout_s: float
    start_timeout_s: float
    max_restarts: int

    def of(self, *, starting: bool) -> tuple[float, str]:
        """Return how long a process may be silent, in seconds, and the same in words with the field that says it."""
        if starting:
            return self.start_timeout_s, f"allowed: {self.start_timeout_s:.0f} s, rollout.start_timeout_s"
        return self.step_timeout_s, f"allowed: {self.step_timeout_s:.0f} s, rollout.step_timeout_s"


@dataclass(slots=True)
class _EnvWorkerState:
    settings: EnvWorkerSettings
    inference_end: Connection  # kept open here, so that a restarted worker inherits the pipe
    worker_end: Connection
    supervisor: Connection
    supervisor_child_end: Connection
    process: BaseProcess | None = None
    incarnation: int = 0
    running_jobs: dict[int, EpisodeJob] = field(default_factory=dict)  # jobs of an evaluation, by job_id
    finished: bool = False


class Cell:
    """Supervisor that starts, watches, restarts and ends the processes of one cell."""

    def __init__(
        self,
        *,
        inference: InferenceSettings,
        env_workers: Sequence[EnvWorkerSettings],
        slots: SharedArraysHandle,
        counters: CellCounters,
        weights: WeightLinks,
        ring: RingHandle | None,
        limits: CellLimits,
        on_episode: Callable[[EpisodeRecord], None],
        jobs: Iterator[EpisodeJob] | None = None,
        env_workers_decide: bool = False,
    ) -> None:
        """Create the cell; `start` spawns its processes.

        Args:
            inference: settings of the inference worker, or of all that decide.
            env_workers: settings of the env workers; together they own all slots.
            slots: exchange slots.
            counters: the cell's counters (heartbeats, stop flag).
            weights: published weights, and the learner's frozen tensors.
            ring: replay ring, None in an evaluation.
            limits: deadlines and restart budget.
            on_episode: called (in the watching thread) with every finished episode.
            jobs: an evaluation's episodes; a job of a worker that died is assigned again.
            env_workers_decide: run no inference worker; every env worker decides for its own slots.
        """
        self._context = get_context("spawn")
        self._inference_settings = inference
        self._handles: tuple[SharedArraysHandle, SharedArraysHandle, RingHandle | None] = (slots, counters.handle, ring)
        self._counters = counters
        self._limits = limits
        self._on_episode = on_episode
        self._jobs = jobs
        self._returned_jobs: list[EpisodeJob] = []
        self._workers = [self._connect(settings) for settings in env_workers]
        self._env_workers_decide = env_workers_decide
        self._weights = weights
        self._inference: BaseProcess | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: CellFailureError | None = None
        self._looked = self._awake_since = 0.0  # on the monotonic clock
        self.restarts = 0
        self.dropped_episodes = 0

    def start(self) -> None:
        """Spawn all processes and the watching thread."""
        if not self._env_workers_decide:
            self._spawn_inference_worker()
        for state in self._workers:
            self._spawn_env_worker(state)
        self._thread = threading.Thread(target=self._watch, name="cell-watch", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Return whether every env worker has run out of jobs."""
        return all(state.finished for state in self._workers)

    def collect(self) -> None:
        """Wait briefly; the processes collect on their own."""
        time.sleep(COLLECT_POLL_S)

    def raise_if_failed(self) -> None:
        """Raise the first failure of the cell, if there was one.

        Raises:
            CellFailureError: a child failed; holds its traceback.
        """
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop everything: stop flag, then a deadline, then SIGKILL. Safe to call twice."""
        self._counters.request_stop()
        for process in self._starting():  # it reads the flag after its imports, and holds nothing before that
            process.kill()
        deadline = time.monotonic() + CLOSE_S
        for process in self._processes():
            process.join(max(0.1, deadline - time.monotonic()))
            if process.is_alive():
                log.warning("%s did not stop within %.0f s and is killed", process.name, CLOSE_S)
                process.kill()
                process.join(CLOSE_S)
        # Last: the kernel ends a child with the thread that started it, which for a restarted worker is the watcher.
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
        for state in self._workers:
            for connection in (
                state.inference_end,
                state.worker_end,
                state.supervisor,
                state.supervisor_child_end,
            ):
                connection.close()

    # --- the watching thread -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._looked = time.monotonic()
            while not self._closing.is_set():
                self._note_pause()
                self._watch_once()
                self._closing.wait(WATCH_PERIOD_S)
        except CellFailureError as failure:
            self._failure = failure
        finally:
            if self._failure is None and not self._closing.is_set():  # a bug here; its traceback is printed
                self._failure = CellFailureError("the thread that watches the cell's processes has died")

    def _note_pause(self) -> None:
        """Count the children's silence anew after a pause of everything: Ctrl-Z, a frozen container, a suspension."""
        now = time.monotonic()
        if now - self._looked > PAUSE_S:
            log.warning(
                "nothing ran for %.0f s; the silence of the processes is counted from now on", now - self._looked
            )
            self._awake_since = now
        self._looked = now

    def _silence(self, name: str, index: int = 0) -> float:
        """Return the seconds since a child's last sign of life, or since the end of a pause of the whole run."""
        return min(self._counters.silent_seconds(name, index), time.monotonic() - self._awake_since)

    def _watch_once(self) -> None:
        self._check_inference()
        for state in self._workers:
            self._hear(state)
            if not state.finished:
                self._check_env_worker(state)

    def _check_inference(self) -> None:
        process = self._inference
        if process is None or self._counters.stop_requested:
            return
        if not process.is_alive():
            raise CellFailureError(
                f"the inference worker ended with exit code {process.exitcode}\n"
                + last_words(self._inference_settings.log_path)
            )
        silent = self._silence("inference_heartbeat")
        started = self._counters.get("inference_policy_version") >= 0
        allowed, named = self._limits.of(starting=not started)
        if silent > allowed:
            self._dump_stack(process)
            process.kill()
            raise CellFailureError(
                f"the inference worker gave no sign of life for {silent:.0f} s ({named})\n"
                + last_words(self._inference_settings.log_path)
            )

    def _check_env_worker(self, state: _EnvWorkerState) -> None:
        process, worker = state.process, state.settings.worker_index
        assert process is not None
        if self._counters.stop_requested:
            return
        if not process.is_alive():
            self._hear(state)
            if process.exitcode == 0:
                state.finished = True
                return
            self._restart(state, f"ended with exit code {process.exitcode}")
            return
        silent = self._silence("env_worker_heartbeat", worker)
        phase = EnvWorkerPhase(int(self._counters.get("env_worker_phase", worker)))
        building = phase in (EnvWorkerPhase.STARTING, EnvWorkerPhase.RESETTING)
        allowed, named = self._limits.of(starting=building)
        if silent > allowed:
            self._dump_stack(process)
            process.kill()
            process.join(CLOSE_S)
            self._restart(state, f"gave no sign of life for {silent:.0f} s while {phase.name} ({named})")

    def _restart(self, state: _EnvWorkerState, reason: str) -> None:
        name = f"env worker {state.settings.worker_index}"
        words = last_words(state.settings.log_path)
        if self.restarts >= self._limits.max_restarts:
            raise CellFailureError(
                f"{name} {reason}, and the cell has used up its {self._limits.max_restarts} restarts "
                f"(rollout.max_restarts)\n{words}"
            )
        self.restarts += 1
        self.dropped_episodes += len(state.settings.slot_ids)
        log.warning("%s %s; restart %d of at most %d", name, reason, self.restarts, self._limits.max_restarts)
        self._returned_jobs.extend(state.running_jobs.values())
        state.running_jobs.clear()
        state.incarnation += 1
        self._spawn_env_worker(state)

    def _hear(self, state: _EnvWorkerState) -> None:
        """Read an env worker's messages: finished episodes, a refusal to start, and in an evaluation job requests."""
        while not state.finished and state.supervisor.poll():
            match hear_worker(state.supervisor):
                case StartRefusal(reason):
                    raise CellFailureError(reason)
                case JobRequest():
                    job = self._next_job()
                    if job is not None:
                        state.running_jobs[job.job_id] = job
                    answer_worker(state.supervisor, job or NoMoreJobs())
                case EpisodeRecord() as record:
                    state.running_jobs.pop(record.job.job_id, None)
                    self._on_episode(record)
                case never:
                    assert_never(never)

    def _next_job(self) -> EpisodeJob | None:
        if self._returned_jobs:
            return self._returned_jobs.pop()
        return next(self._jobs, None) if self._jobs is not None else None

    # --- processes ---------------------------------------------------------------------------------------------------

    def _connect(self, settings: EnvWorkerSettings) -> _EnvWorkerState:
        inference_end, worker_end = self._context.Pipe()
        supervisor, child_end = self._context.Pipe()
        return _EnvWorkerState(settings, inference_end, worker_end, supervisor, child_end)

    def _spawn_inference_worker(self) -> None:
        slots, counters, _ = self._handles
        self._counters.beat("inference_heartbeat")  # its time to start counts from now
        links = InferenceLinks(slots, counters, self._weights, [state.inference_end for state in self._workers])
        self._inference = self._spawn("inference_worker", inference_worker_main, (self._inference_settings, links))

    def _spawn_env_worker(self, state: _EnvWorkerState) -> None:
        slots, counters, ring = self._handles
        worker = state.settings.worker_index
        self._counters.set("env_worker_phase", EnvWorkerPhase.STARTING, worker)
        self._counters.set("env_worker_open_slots", 0, worker)
        self._counters.beat("env_worker_heartbeat", worker)
        if state.incarnation:  # the predecessor's unfinished message is worthless and would never end
            state.supervisor.close()
            state.supervisor_child_end.close()
            state.supervisor, state.supervisor_child_end = self._context.Pipe()
        links = EnvWorkerLinks(
            slots=slots,
            counters=counters,
            ring=ring,
            inference=state.worker_end,
            supervisor=state.supervisor_child_end,
        )
        start = (state.settings, links, state.incarnation)
        state.process = (
            self._spawn(f"env_worker_{worker}", deciding_worker_main, (*start, self._inference_settings, self._weights))
            if self._env_workers_decide
            else self._spawn(f"env_worker_{worker}", env_worker_main, start)
        )

    def _spawn(self, name: str, target: Callable[..., None], args: tuple[object, ...]) -> BaseProcess:
        process = self._context.Process(name=name, target=target, args=args, daemon=True)
        start_child(process)
        return process

    def _processes(self) -> list[BaseProcess]:
        processes = [state.process for state in self._workers] + [self._inference]
        return [process for process in processes if process is not None]

    def _starting(self) -> list[BaseProcess]:
        """Return the processes that have not started working yet."""
        starting = [
            state.process
            for state in self._workers
            if self._counters.get("env_worker_phase", state.settings.worker_index) == EnvWorkerPhase.STARTING
        ]
        starting += [self._inference] if self._counters.get("inference_policy_version") < 0 else []
        return [process for process in starting if process is not None]

    @staticmethod
    def _dump_stack(process: BaseProcess) -> None:
        """Ask a hung child to write all its stacks to its log."""
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
            time.sleep(STACK_DUMP_S)


def last_words(log_path: Path, lines: int = 30) -> str:
    """Return the end of a child's log, which has its traceback or stack dump."""
    if not log_path.exists():
        return f"(it left no log at {log_path})"
    tail = log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return f"--- end of {log_path} ---\n" + "\n".join(tail)
