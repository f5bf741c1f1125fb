"""Evaluations of a study's policies in LIBERO on held-out initial states, as jobs.

Training draws states with seeds below `SAMPLED_STATES`. Evaluation plays the benchmark's stored states if training
draws with LIBERO's own sampler, and otherwise draws with a seed above: from the same sampler, or from LIBERO's if
training plays stored states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.envs.kind import DRAWN, SAMPLED
from vla_rl.studies.jobs import Job
from vla_rl.studies.pace import Expected
from vla_rl.workers.episodes import SAMPLED_STATES

STORED = "standard"  # the benchmark's own states
HELD_OUT_SEED = SAMPLED_STATES + 2  # seed of the states of evaluation before and after, unless they are stored ones

# Rates of one virtual core that nothing else keeps busy, from CPU times; other machines differ by a factor.
START_S = 15.0  # imports and simulators
EVALUATED_ENV_STEPS_PER_S = 130.0  # exact physics, one simulator
SHARE_OF_HORIZON = 0.8  # mean length of an episode


@dataclass(frozen=True, slots=True)
class LiberoTasks:
    """Tasks that an evaluation plays, and how long an episode may last."""

    suite: str
    tasks: Sequence[int]  # ids
    horizon: int  # control steps


def held_out_states(init_states: str) -> str:
    """Return the set of states that policies trained on `init_states` are evaluated on."""
    if init_states == SAMPLED:
        return STORED
    return init_states if init_states in DRAWN else SAMPLED


def held_out_options(init_states: str) -> list[str]:
    """Return the options of `vla-rl eval` for these states."""
    states = held_out_states(init_states)
    return ["--init-states", states, *([] if states == STORED else ["--seed", str(HELD_OUT_SEED)])]


def evaluation_job(
    name: str,
    policy: Callable[[], Path],
    options: Sequence[str],
    *,
    of: LiberoTasks,
    states: int,
    record: Mapping[str, Any],
    needs: Sequence[str],
    passes: int = 1,
    env_steps_per_s: float = EVALUATED_ENV_STEPS_PER_S,
) -> Job:
    """Return the job that evaluates a policy in LIBERO.

    Args:
        name: its name.
        policy: function that returns the run or checkpoint, called when the job starts.
        options: further options of `vla-rl eval`, such as those of the states.
        of: the tasks.
        states: initial states of each task.
        record: what the job's record says about it.
        needs: names of jobs that must finish first.
        passes: times that all states are played, such as 3 with two controls.
        env_steps_per_s: expected control steps per second.
    """
    episodes = passes * states * len(of.tasks)
    return Job(
        name=name,
        arguments=lambda folder: [
            *("eval", str(policy()), "--suite", of.suite, "--tasks", ",".join(map(str, of.tasks))),
            *("--horizon", str(of.horizon), "--episodes-per-task", str(states), *options, "--serial"),
            *("--out", str(folder)),
        ],
        expected=Expected(START_S, episodes * SHARE_OF_HORIZON * of.horizon / env_steps_per_s),
        share=lambda folder: _share_of_episodes(folder, episodes),
        record=record,
        needs=tuple(needs),
        continues=True,
    )


def _share_of_episodes(folder: Path, total: int) -> float:
    logs = folder.glob("episodes*.jsonl")
    return sum(log.read_bytes().count(b"\n") for log in logs) / total
