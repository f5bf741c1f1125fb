"""Jobs of an env slot (the episodes to play) and records of their outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLED_STATES = 2**31 - 1  # numbers of initial states that an environment samples itself


@dataclass(frozen=True, slots=True)
class EpisodeJob:
    """One episode to play."""

    task_index: int  # index in the run's list of tasks
    init_state: int
    seed: int  # of the schedule; `envs.seeds.reset_seed` derives the environment's from it
    job_id: int = -1  # position in an evaluation's queue; -1 in training


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode that was played to its end."""

    job: EpisodeJob
    terminated: bool
    truncated: bool
    success: bool  # it terminated, or reached the goal in any decision
    episode_return: float  # sum of rewards
    env_steps: int
    decisions: int
    seconds: float  # from the start of the reset to the last control step


def training_schedule(
    *, seed: int, env_index: int, num_envs: int, num_init_states: Sequence[int | None], first_episode: int = 0
) -> Iterator[EpisodeJob]:
    """Yield jobs of one env slot, endlessly: tasks by `task_of_episode`, initial states drawn uniformly.

    The n-th job depends on (seed, env_index, n) alone: a resumed run continues after the episodes it has counted. A
    restarted worker does not know its predecessor's progress and skips many, see `env_worker.scheduled_jobs`.

    Args:
        seed: the run's seed.
        env_index: this slot, 0 .. num_envs - 1, counted over all cells.
        num_envs: slots over all cells.
        num_init_states: number of initial states per task; None if the environment samples them.
        first_episode: n of the first job.
    """
    num_tasks = len(num_init_states)
    episode = first_episode
    while True:
        rng = np.random.default_rng([seed, env_index, episode])
        task = task_of_episode(episode, env_index=env_index, num_envs=num_envs, num_tasks=num_tasks)
        count = num_init_states[task] or SAMPLED_STATES
        yield EpisodeJob(task_index=task, init_state=int(rng.integers(count)), seed=int(rng.integers(SAMPLED_STATES)))
        episode += 1


def task_of_episode(episode: int, *, env_index: int, num_envs: int, num_tasks: int) -> int:
    """Return the task that a slot plays in its n-th episode: every task equally often, over all slots and rounds.

    A round is one episode of every slot. As many slots as can be divided evenly among the tasks keep one task forever,
    because another task means another simulator; the tasks of the rest advance by the number of these slots in every
    round. For any numbers of slots, tasks and rounds, the tasks' counts differ by at most one.

    Args:
        episode: n, from 0.
        env_index: the slot, 0 .. num_envs - 1.
        num_envs: slots over all cells.
        num_tasks: tasks of the run.
    """
    walking = num_envs % num_tasks
    place = env_index - (num_envs - walking)
    return env_index % num_tasks if place < 0 else (place + episode * walking) % num_tasks
