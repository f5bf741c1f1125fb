"""What an env slot plays next, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLED_STATES = 2**31 - 1  # names of initial states that an environment samples itself


@dataclass(frozen=True, slots=True)
class EpisodeJob:
    """One episode to play."""

    task_index: int  # into the run's list of tasks
    init_state: int
    seed: int
    job_id: int = -1  # position in an evaluation's queue; -1 in training


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode that was played to its end."""

    job: EpisodeJob
    terminated: bool
    truncated: bool
    success: bool  # it terminated, or reached the goal in any of its decisions
    episode_return: float  # sum of rewards
    env_steps: int
    decisions: int
    seconds: float  # from the start of the reset to the last control step
    first_version: int  # policy version of the first decision
    last_version: int


def training_schedule(
    *, seed: int, env_index: int, num_envs: int, num_init_states: Sequence[int | None], first_episode: int = 0
) -> Iterator[EpisodeJob]:
    """Jobs of one env slot, for ever: its share of the tasks in turn, initial states drawn uniformly.

    Tasks are dealt out like cards, so that a slot changes its simulator as rarely as possible. The n-th job depends on
    (seed, env_index, n) alone, so a restarted worker goes on where its predecessor was.

    Args:
        seed: of the run.
        env_index: this slot, 0 .. num_envs - 1, counted over all cells.
        num_envs: slots over all cells.
        num_init_states: per task, how many initial states there are; None where the environment samples them.
        first_episode: n of the first job.
    """
    num_tasks = len(num_init_states)
    tasks = [task for task in range(num_tasks) if task % num_envs == env_index] or [env_index % num_tasks]
    episode = first_episode
    while True:
        rng = np.random.default_rng([seed, env_index, episode])
        task = tasks[episode % len(tasks)]
        count = num_init_states[task] or SAMPLED_STATES
        yield EpisodeJob(task_index=task, init_state=int(rng.integers(count)), seed=int(rng.integers(SAMPLED_STATES)))
        episode += 1
