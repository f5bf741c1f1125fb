"""Process of an env worker: makes simulators, plays episodes, talks to the inference worker and the supervisor.

    loop:  wait for replies ─► execute each decision, record it ─► wait until the governor allows more ─► request

It waits for the inference worker (a reply) and for the governor (collection far enough ahead of consumption). Both
waits end with the stop flag, and the heartbeat continues during both. A worker that decides itself
(`vla_rl.workers.deciding_worker`) has the same loop, and its server in place of the inference worker. The worker
reports every finished episode and a failure to start to the supervisor, which in an evaluation assigns the episodes
(`vla_rl.workers.messages`).

Simulators of this process are stepped in turn. Simulators elsewhere (`slot_limit_s`) work side by side: each slot has a
thread, and this process only waits for them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol, assert_never

from vla_rl.errors import UserError
from vla_rl.ipc.counters import CellCounters, EnvWorkerPhase
from vla_rl.ipc.shared_arrays import SharedArrays, SharedArraysHandle
from vla_rl.ipc.slots import ExchangeSlots
from vla_rl.replay.ring import ReplayRing, RingHandle
from vla_rl.types import FrameTransform
from vla_rl.workers.env_runner import EnvBuilder, EnvPool, EnvRunner
from vla_rl.workers.episodes import EpisodeJob, Groups, group_schedule, training_schedule
from vla_rl.workers.messages import (
    JobRequest,
    NoMoreJobs,
    StartRefusal,
    drain,
    hear_supervisor,
    receive_slots,
    send_slots,
    tell_supervisor,
)
from vla_rl.workers.process import enter_child, leave_child
from vla_rl.workers.slot_threads import SlotThreads
from vla_rl.workers.worker_counters import WorkerCounters

POLL_S = 0.25  # heartbeat period while waiting
GOVERNOR_POLL_S = 0.002
PARKED_POLL_S = 0.01  # while a slot waits for the others of its team
SEND_AFTER_S = 0.001  # requests of cheap environments are sent together, those of slow ones one by one


@dataclass(frozen=True, slots=True)
class EnvWorkerSettings:
    """Settings of one env worker."""

    worker_index: int
    slot_ids: Sequence[int]  # of the cell
    first_env_index: int  # index of slot_ids[0], counted over all cells
    num_envs: int  # over all cells
    builders: Sequence[EnvBuilder]  # per task
    num_init_states: Sequence[int | None]  # per task
    transform: FrameTransform | None
    seed: int
    max_open_envs_per_slot: int
    first_episode: int  # position of every slot in the training schedule; above 0 in a resumed run
    queue_jobs: bool  # ask the supervisor for episodes (evaluation) instead of the training schedule
    log_path: Path
    variables: Mapping[str, str] = field(default_factory=dict)  # environment variables for the simulators
    threads: int = 1
    groups: Groups | None = None  # of the training schedule; None: every episode has a start of its own
    slot_limit_s: float | None = None  # play slots side by side, each call at most so long; None: one after another


@dataclass(frozen=True, slots=True)
class EnvWorkerLinks:
    """Objects that one env worker shares with the rest of its cell."""

    slots: SharedArraysHandle
    counters: SharedArraysHandle
    ring: RingHandle | None
    inference: Connection
    supervisor: Connection


def env_worker_main(settings: EnvWorkerSettings, links: EnvWorkerLinks, incarnation: int) -> None:
    """Entry point of the spawned process; returns when the stop flag is set or the jobs are done."""
    log = enter_child(f"env_worker_{settings.worker_index}", settings.log_path, threads=settings.threads)
    set_variables(settings.variables)
    log.info("start %d of this worker, slots %s", incarnation, list(settings.slot_ids))
    with SharedArrays.attach(links.slots) as arrays, CellCounters.attach(links.counters) as counters:
        ring = ReplayRing.attach(links.ring) if links.ring is not None else None
        worker = EnvWorker(
            settings,
            links,
            incarnation,
            ExchangeSlots.view(arrays),
            WorkerCounters(counters, settings.worker_index),
            ring,
        )
        try:
            worker.run()
        finally:
            worker.close()
            if ring is not None:
                ring.close()
    log.info("done")
    leave_child()


def set_variables(variables: Mapping[str, str]) -> None:
    """Set the variables that this process's simulators read, such as the GPU to render on."""
    os.environ.update(variables)


class Decider(Protocol):
    """Source of an env worker's decisions."""

    def ask(self, slots: Sequence[int]) -> None:
        """Ask for decisions of slots whose observations are in place."""
        ...

    def answered(self, timeout_s: float) -> list[int]:
        """Return slots that have a decision; empty if there is none within the time."""
        ...


class AskedWorker:
    """Decider that asks the inference worker over a pipe."""

    def __init__(self, connection: Connection, incarnation: int) -> None:
        """Take over a worker's end of the pipe; a predecessor's unread replies are dropped."""
        self.connection = connection
        self._incarnation = incarnation
        drain(connection)

    def ask(self, slots: Sequence[int]) -> None:
        """Send a request."""
        send_slots(self.connection, self._incarnation, slots)

    def answered(self, timeout_s: float) -> list[int]:
        """Wait for one reply; empty if there is none, or if it is to a predecessor."""
        if not self.connection.poll(timeout_s):
            return []
        incarnation, slots = receive_slots(self.connection)
        return slots if incarnation == self._incarnation else []


class EnvWorker:
    """Loop of one env worker around its `EnvRunner`."""

    def __init__(
        self,
        settings: EnvWorkerSettings,
        links: EnvWorkerLinks,
        incarnation: int,
        slots: ExchangeSlots,
        counters: WorkerCounters,
        ring: ReplayRing | None,
        decider: Decider | None = None,
    ) -> None:
        """Attach to the cell; a predecessor's half-finished episodes are dropped.

        Args:
            settings: of this worker.
            links: to the rest of the cell.
            incarnation: starts of this worker before this one.
            slots: exchange arrays of the cell.
            counters: this worker's row.
            ring: replay ring of the cell; None in an evaluation.
            decider: where decisions come from; None: the inference worker.
        """
        self._settings = settings
        self._links = links
        self._incarnation = incarnation
        self._counters = counters
        self._inference = AskedWorker(links.inference, incarnation)
        self._decider: Decider = decider or self._inference
        writers = {slot: ring.writer(slot) for slot in settings.slot_ids} if ring is not None else {}
        self._runner = EnvRunner(
            slots=slots,
            slot_ids=settings.slot_ids,
            pool=EnvPool(settings.builders, settings.max_open_envs_per_slot),
            transform=settings.transform,
            jobs={slot: self._jobs(slot, ring) for slot in settings.slot_ids},
            writers=writers,
            counters=counters,
            on_episode=partial(tell_supervisor, links.supervisor),
        )

    def run(self) -> None:
        """Play until told to stop or out of jobs."""
        if self._settings.slot_limit_s is None:
            self._run_in_turn()
        else:
            self._run_side_by_side(self._settings.slot_limit_s)
        self._counters.set_open_slots(0)
        self._counters.enter(EnvWorkerPhase.STOPPED)

    def close(self) -> None:
        """Abandon unfinished episodes, close the simulators."""
        self._runner.close()

    def _run_in_turn(self) -> None:
        with self._refusing():
            open_slots = self._start()
        while open_slots and not self._counters.stop_requested:
            self._counters.set_open_slots(len(open_slots - self._runner.parked))
            open_slots -= self._play(self._receive())
            self._start_parked()

    def _run_side_by_side(self, limit_s: float) -> None:
        """Play every slot in a thread of its own. This one speaks with the rest of the cell, and never waits for one.

        Raises:
            TimeoutError: a slot's simulator has not answered within the limit.
        """
        runner, counters = self._runner, self._counters
        open_slots = set(self._settings.slot_ids)
        ready: list[int] = []  # slots that have an observation, and have not asked for a decision yet
        threads, asked_at = SlotThreads(self._settings.slot_ids, limit_s=limit_s), 0.0
        for slot in self._settings.slot_ids:
            threads.begin(slot, runner.start)
        while open_slots and not counters.stop_requested:
            counters.set_open_slots(len(open_slots - runner.parked))
            with self._waiting(threads, is_held_back=bool(ready)):
                period = GOVERNOR_POLL_S if ready else PARKED_POLL_S if runner.parked else POLL_S
                wait([self._inference.connection, threads.ended], timeout=period)
            for slot in self._inference.answered(0.0):
                threads.begin(slot, runner.advance)
            with self._refusing():
                ended = threads.take()
            ready += [slot for slot, has_observation in ended if has_observation]
            open_slots -= {slot for slot, has_observation in ended if not has_observation} - runner.parked
            if time.monotonic() - asked_at >= PARKED_POLL_S:
                asked_at = time.monotonic()
                for slot in filter(threads.is_idle, sorted(runner.parked)):
                    threads.begin(slot, runner.start)
            if ready and counters.collection_allowed():
                self._inference.ask(ready)
                ready = []
        threads.close()

    def _waiting(self, threads: SlotThreads, *, is_held_back: bool) -> AbstractContextManager[None]:
        """Account for a wait, by what keeps the slots from playing; nothing does while one of them plays."""
        if threads.busy:
            self._counters.beat()
            return nullcontext()
        if is_held_back:
            return self._counters.timed(EnvWorkerPhase.HELD_BACK, "env_worker_held_back_seconds")
        return self._counters.timed(EnvWorkerPhase.WAITING_FOR_ACTION, "env_worker_wait_seconds")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Tell the supervisor of an environment that cannot be made here: another attempt would fail too.

        Raises:
            UserError: what was raised inside.
        """
        try:
            yield
        except UserError as error:
            tell_supervisor(self._links.supervisor, StartRefusal(str(error)))
            raise

    def _start(self) -> set[int]:
        """Begin an episode in every slot; returns the slots that have one.

        Raises:
            UserError: an environment cannot be made here, and another attempt would fail too.
        """
        open_slots = set(self._settings.slot_ids)
        self._counters.set_open_slots(len(open_slots))
        for slot in self._settings.slot_ids:
            if self._counters.stop_requested:  # simulators take seconds to build
                break
            if self._runner.start(slot):
                self._request([slot])
            elif slot not in self._runner.parked:
                open_slots.discard(slot)
        return open_slots

    def _start_parked(self) -> None:
        """Ask again whether slots that had to wait may play."""
        for slot in sorted(self._runner.parked):
            if self._runner.start(slot):
                self._request([slot])

    def _play(self, replied: Sequence[int]) -> set[int]:
        """Execute the replied slots' decisions and ask again; returns the slots that have run out of jobs."""
        done: set[int] = set()
        ready: list[int] = []
        last_sent = time.monotonic()
        for slot in replied:
            if self._runner.advance(slot):
                ready.append(slot)
            elif slot not in self._runner.parked:
                done.add(slot)
            if ready and time.monotonic() - last_sent > SEND_AFTER_S:
                self._request(ready)
                ready, last_sent = [], time.monotonic()
        if ready:
            self._request(ready)
        return done

    def _request(self, slots: Sequence[int]) -> None:
        """Ask for decisions as soon as the governor allows more of them."""
        counters = self._counters
        while not counters.collection_allowed() and not counters.stop_requested:
            with counters.timed(EnvWorkerPhase.HELD_BACK, "env_worker_held_back_seconds"):
                time.sleep(GOVERNOR_POLL_S)
        self._decider.ask(slots)

    def _receive(self) -> list[int]:
        """Wait for decisions; empty after a poll period without any, so that the caller sees the stop flag."""
        with self._counters.timed(EnvWorkerPhase.WAITING_FOR_ACTION, "env_worker_wait_seconds"):
            return self._decider.answered(PARKED_POLL_S if self._runner.parked else POLL_S)

    def _jobs(self, slot: int, ring: ReplayRing | None) -> Iterator[EpisodeJob | None]:
        if self._settings.queue_jobs:
            return self._queued_jobs()
        return scheduled_jobs(self._settings, slot, incarnation=self._incarnation, ring=ring)

    def _queued_jobs(self) -> Iterator[EpisodeJob]:
        """Yield jobs assigned by the supervisor, one at a time, until there are no more."""
        while True:
            tell_supervisor(self._links.supervisor, JobRequest())
            while not self._links.supervisor.poll(POLL_S):
                self._counters.beat()
                if self._counters.stop_requested:
                    return
            match hear_supervisor(self._links.supervisor):
                case EpisodeJob() as job:
                    yield job
                case NoMoreJobs():
                    return
                case never:
                    assert_never(never)


def scheduled_jobs(
    settings: EnvWorkerSettings, slot: int, *, incarnation: int, ring: ReplayRing | None
) -> Iterator[EpisodeJob | None]:
    """Yield the training schedule of one slot; None while nothing is to be played yet.

    Without groups, each restart enters it 65,536 episodes later, to avoid repetition. With groups, a restarted worker
    continues after the slot's last episode in the ring, so that no group stays incomplete.
    """
    env_index = settings.first_env_index + settings.slot_ids.index(slot)
    if settings.groups is not None:
        memory, first_env = settings.groups.memory, env_index - slot  # of this cell, whose slots the ring counts from 0

        def newest_groups(env_index: int) -> list[int]:
            return [] if ring is None else ring.newest_groups(env_index - first_env, memory)

        return group_schedule(
            settings.groups,
            seed=settings.seed,
            env_index=env_index,
            num_envs=settings.num_envs,
            num_init_states=settings.num_init_states,
            first_episode=settings.first_episode,
            newest_groups=newest_groups,
        )
    return training_schedule(
        seed=settings.seed,
        env_index=env_index,
        num_envs=settings.num_envs,
        num_init_states=settings.num_init_states,
        first_episode=settings.first_episode + (incarnation << 16),
    )
