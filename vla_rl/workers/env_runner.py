"""Runner that steps one worker's environments and writes their episodes: the same object in a process or serially."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vla_rl.envs.seeds import reset_seed
from vla_rl.ipc.counters import EnvWorkerPhase
from vla_rl.ipc.slots import ExchangeSlots
from vla_rl.replay.ring import EpisodeWriter
from vla_rl.types import Environment, FrameTransform, Observation
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord
from vla_rl.workers.worker_counters import WorkerCounters

EnvBuilder = Callable[[], Environment]
NO_MORE = object()
_SEEDS = 2**32  # torch's generator on CPUs ignores all higher bits


@dataclass(slots=True)
class _Episode:
    """Running episode of one slot."""

    job: EpisodeJob
    env: Environment
    began: float
    sampling: np.random.Generator | None  # of the seeds of its decisions; None if the job leaves sampling to the cell
    success: bool = False
    episode_return: float = 0.0
    env_steps: int = 0
    decisions: int = 0


@dataclass(slots=True)
class EnvPool:
    """Simulators of one worker, built on first use; a slot's least recently used one is closed beyond its limit.

    Building LIBERO takes seconds, which is why simulators are kept, and a graphics context some hundred megabytes,
    which is why there is a limit. Slots never share a simulator, and none closes another's, which may be in the middle
    of an episode; so different slots may ask from different threads.
    """

    builders: Sequence[EnvBuilder]  # per task
    max_open_per_slot: int
    _open: dict[int, OrderedDict[int, Environment]] = field(default_factory=dict)  # by slot, then by task

    def get(self, slot: int, task_index: int) -> Environment:
        """Return the simulator of a slot for a task. Call it only between two episodes of the slot."""
        of_slot = self._open.setdefault(slot, OrderedDict())
        if task_index not in of_slot:
            if len(of_slot) >= self.max_open_per_slot:
                of_slot.popitem(last=False)[1].close()
            of_slot[task_index] = self.builders[task_index]()
        of_slot.move_to_end(task_index)
        return of_slot[task_index]

    def close(self) -> None:
        """Close all simulators."""
        for of_slot in list(self._open.values()):
            while of_slot:
                of_slot.popitem()[1].close()


class EnvRunner:
    """Player of the episodes of some env slots.

    A slot waits for a decision, with its observation in the slot arrays, or is parked until there is something to play,
    or has run out of jobs. `start` begins an episode; `advance` executes the decision that the inference worker wrote
    and stores the next observation. Different slots may be played from different threads: a lock guards what they
    share, and is free while a simulator works.
    """

    def __init__(
        self,
        *,
        slots: ExchangeSlots,
        slot_ids: Sequence[int],
        pool: EnvPool,
        transform: FrameTransform | None,
        jobs: Mapping[int, Iterator[EpisodeJob | None]],
        writers: Mapping[int, EpisodeWriter],
        counters: WorkerCounters,
        on_episode: Callable[[EpisodeRecord], None],
    ) -> None:
        """Create the runner; no simulator is built before `start`.

        Args:
            slots: exchange arrays of the cell.
            slot_ids: the slots that this runner owns.
            pool: simulators, made in this process.
            transform: converts raw camera frames to stored frames; None if nothing is rendered.
            jobs: per slot, the episodes to play; None stands for nothing yet.
            writers: per slot, the writer of its decisions; empty in an evaluation.
            counters: the cell's counters.
            on_episode: called with every finished episode.
        """
        self._slots = slots
        self.slot_ids = list(slot_ids)
        self._pool = pool
        self._transform = transform
        self._jobs = jobs
        self._writers = writers
        self._counters = counters
        self._on_episode = on_episode
        self._episodes: dict[int, _Episode] = {}
        self._lock = threading.Lock()
        self.parked: set[int] = set()  # slots that have nothing to play yet: call `start` again

    def start(self, slot: int) -> bool:
        """Begin the slot's next episode and leave its first observation in the slot.

        Returns:
            False if the slot has no more jobs, or is `parked`.
        """
        with self._lock:
            self.parked.discard(slot)
            job = next(self._jobs[slot], NO_MORE)
            if job is None:
                self.parked.add(slot)
        if not isinstance(job, EpisodeJob):
            self._episodes.pop(slot, None)
            return False
        began = time.monotonic()
        self._counters.enter(EnvWorkerPhase.RESETTING)
        env = self._pool.get(slot, job.task_index)
        seed = reset_seed(job.seed, env.task.task_id, job.init_state)
        observation = env.reset(job.init_state, seed=seed)
        sampling = None if job.sampling_seed is None else np.random.default_rng(job.sampling_seed)
        episode = self._episodes[slot] = _Episode(job=job, env=env, began=began, sampling=sampling)
        if slot in self._writers:
            self._writers[slot].begin(job.task_index, group=job.group, member=job.member)
        self._slots.task_index[slot] = job.task_index
        self._present(slot, episode, observation)
        return True

    def advance(self, slot: int) -> bool:
        """Execute the decision in the slot; when the episode ends, commit it and start the next one.

        Returns:
            False if the slot has no more jobs, or is `parked`, else True: the slot waits for a decision.
        """
        episode = self._episodes[slot]
        slots = self._slots
        self._counters.enter(EnvWorkerPhase.STEPPING)
        result = episode.env.step_chunk(slots.actions[slot])
        episode.decisions += 1
        episode.env_steps += result.executed
        episode.episode_return += result.reward
        episode.success = episode.success or result.terminated or result.success
        with self._lock:
            self._counters.add_decision(result.executed)
        writer = self._writers.get(slot)
        if writer is not None:
            writer.add(
                frames=slots.frames[slot],
                state=slots.state[slot],
                tokens=slots.tokens[slot],
                logprobs=slots.logprobs[slot],
                value=float(slots.value[slot]),
                reward=result.reward,
                executed=result.executed,
                terminated=result.terminated,
                truncated=result.truncated,
                policy_version=int(slots.policy_version[slot]),
                logits=slots.logits[slot] if slots.logits is not None else None,
            )
        self._present(slot, episode, result.observation)
        if not (result.terminated or result.truncated):
            return True
        if writer is not None:
            writer.commit(slots.frames[slot], slots.state[slot], success=episode.success)
        self._finish(episode, terminated=result.terminated, truncated=result.truncated)
        return self.start(slot)

    def abandon(self) -> None:
        """Drop every half-finished episode."""
        for slot in self._episodes:
            if slot in self._writers:
                self._writers[slot].abandon()
        self._episodes.clear()

    def close(self) -> None:
        """Abandon unfinished episodes and close the simulators."""
        self.abandon()
        self._pool.close()

    def _present(self, slot: int, episode: _Episode, observation: Observation) -> None:
        if self._transform is not None:
            self._slots.frames[slot] = self._transform(observation.frames)
        elif observation.frames.size:
            self._slots.frames[slot] = observation.frames
        self._slots.state[slot] = observation.state
        self._slots.sampling_seed[slot] = -1 if episode.sampling is None else episode.sampling.integers(_SEEDS)

    def _finish(self, episode: _Episode, *, terminated: bool, truncated: bool) -> None:
        record = EpisodeRecord(
            job=episode.job,
            terminated=terminated,
            truncated=truncated,
            success=episode.success,
            episode_return=episode.episode_return,
            env_steps=episode.env_steps,
            decisions=episode.decisions,
            seconds=time.monotonic() - episode.began,
        )
        with self._lock:
            self._counters.add_episode()
            self._on_episode(record)
