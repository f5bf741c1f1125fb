"""Jobs of an env slot (the episodes to play) and records of their outcomes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

SAMPLED_STATES = 2**31 - 1  # numbers of initial states that an environment samples itself


@dataclass(frozen=True, slots=True)
class EpisodeJob:
    """One episode to play."""

    task_index: int  # index in the run's list of tasks
    init_state: int
    seed: int  # of the schedule; `envs.seeds.reset_seed` derives the environment's from it
    job_id: int = -1  # position in an evaluation's queue; -1 in training
    sampling_seed: int | None = None  # of its sampled actions; None: the cell's random numbers, as in training
    group: int = 0  # shared by all episodes with this start, see `group_schedule`; 0: none
    member: int = 0  # number in its group, by slot and turn, so that it says nothing about how the episode went


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

    The n-th job depends on (seed, env_index, n) alone: all slots of a resumed run continue after the n of the slot that
    was ahead of the others. A restarted worker does not know its predecessor's progress and skips many, see
    `env_worker.scheduled_jobs`.

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


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of episodes with the same start, and the teams of slots that play them.

    A team is the largest number of slots that divides both the members of a group and the slots of a cell, so that
    every slot of a team plays equally many members of every group, one after another, and no group leaves its cell.
    """

    members: int  # episodes of a group
    slots_per_cell: int
    max_lead: int  # groups by which a slot may be ahead of the slowest of its team
    tasks: Sequence[str] = ()  # names of the run's tasks: groups of other tasks are never continued

    @property
    def team_size(self) -> int:
        """Return the number of slots that play one group at the same time."""
        return math.gcd(self.members, self.slots_per_cell)

    @property
    def turns(self) -> int:
        """Return the number of members that each slot of a team plays of every group."""
        return self.members // self.team_size

    @property
    def memory(self) -> int:
        """Return the episodes that a slot can commit at most while another of its team commits none."""
        return self.turns * (self.max_lead + 1)


def group_schedule(
    groups: Groups,
    *,
    seed: int,
    env_index: int,
    num_envs: int,
    num_init_states: Sequence[int | None],
    first_episode: int = 0,
    newest_groups: Callable[[int], Sequence[int]] = lambda env_index: (),  # noqa: ARG005
) -> Iterator[EpisodeJob | None]:
    """Yield jobs of one env slot, endlessly: its turns in the groups of its team.

    All members of a group have the same task, initial state, seed and group id, and are numbered by slot, then turn.
    Tasks follow from `task_of_episode` with teams in place of slots and groups in place of episodes; initial states are
    drawn uniformly. A slot continues after its last committed episode, so a member that was lost with a worker, or with
    the end of a run, is played again before anything else; one that has committed none begins with its team's first
    group. None is yielded while the slot is too far ahead of its team, for instance because the worker of another slot
    restarts: nothing is to be played yet.

    A group id holds who numbered it and its number, so that ids stay distinct in a ring that a resumed run has loaded:
    15 bits of a checksum over the arguments that the schedule depends on, 16 bits for the team, 32 for the number.

    Args:
        groups: the groups, and the slots of this cell.
        seed: the run's seed.
        env_index: this slot, 0 .. num_envs - 1, counted over all cells.
        num_envs: slots over all cells.
        num_init_states: number of initial states per task; None if the environment samples them.
        first_episode: episodes that this slot played in earlier parts of the run; used if the ring knows of none of its
            team.
        newest_groups: from a slot to the groups of its newest `groups.memory` committed episodes, oldest first.
    """
    team, num_teams = env_index // groups.team_size, num_envs // groups.team_size
    if num_teams >= 1 << 16:
        raise ValueError(f"{num_teams} teams of slots play groups; 65,535 are possible: use fewer env workers")
    shape = (groups.team_size, groups.members, groups.slots_per_cell)
    arguments = (seed, num_teams, *shape, tuple(groups.tasks), tuple(num_init_states))
    checksum = zlib.crc32(repr(arguments).encode()) & 0x7FFF
    first_id = (checksum << 48) + (team << 32) + 1
    before = math.ceil(first_episode / groups.turns)
    first_of_team = team * groups.team_size

    def committed(slot: int) -> list[int]:
        """Return the numbers of this schedule's groups that a slot has committed episodes of, oldest first."""
        return [group - first_id for group in newest_groups(slot) if 0 <= group - first_id < (1 << 32) - 1]

    def position(slot: int) -> tuple[int, int]:
        """Return the number of the group that a slot plays next, and the turns in it that it has committed."""
        own = committed(slot)
        if not own:  # its mates wait for it, so they still remember the group with which all began
            mates = range(first_of_team, first_of_team + groups.team_size)
            return min((number for mate in mates for number in committed(mate)), default=before), 0
        turns = own[-groups.turns :].count(own[-1])
        return (own[-1] + 1, 0) if turns == groups.turns else (own[-1], turns)

    number, turn = position(env_index)
    while True:
        rng = np.random.default_rng([seed, team, number])
        task = task_of_episode(number, env_index=team, num_envs=num_teams, num_tasks=len(num_init_states))
        count = num_init_states[task] or SAMPLED_STATES
        job = EpisodeJob(
            task_index=task,
            init_state=int(rng.integers(count)),
            seed=int(rng.integers(SAMPLED_STATES)),
            group=first_id + number,
        )
        for done in range(turn, groups.turns):
            while number - min(position(first_of_team + mate)[0] for mate in range(groups.team_size)) > groups.max_lead:
                yield None
            yield replace(job, member=(env_index - first_of_team) * groups.turns + done)
        number, turn = number + 1, 0


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
