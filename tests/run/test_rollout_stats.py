"""Recent training episodes, on records written by hand."""

from __future__ import annotations

import json

import numpy as np

from vla_rl.run.rollout_stats import RolloutStats
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord


def ended(*, success: bool, episode_return: float, env_steps: int) -> EpisodeRecord:
    return EpisodeRecord(
        job=EpisodeJob(task_index=0, init_state=0, seed=0),
        terminated=success,
        truncated=not success,
        success=success,
        episode_return=episode_return,
        env_steps=env_steps,
        decisions=1,
        seconds=1.0,
    )


def test_recent_episodes_go_through_json_also_with_the_numbers_of_numpy() -> None:
    """Simulators hand out numpy's own bools and floats, which json refuses."""
    stats = RolloutStats(recent_episodes=10)
    stats.add(ended(success=np.True_, episode_return=np.float32(0.5), env_steps=np.int64(7)))  # type: ignore[arg-type]
    stats.add(ended(success=False, episode_return=-1.0, env_steps=3))
    restored = RolloutStats(recent_episodes=10)
    restored.load_state_dict(json.loads(json.dumps(stats.state_dict())))
    assert restored.sums() == {"episodes": 2.0, "successes": 1.0, "returns": -0.5, "env_steps": 10.0}


def test_of_more_episodes_than_there_is_room_for_the_newest_count() -> None:
    stats = RolloutStats(recent_episodes=10)
    for success in (True, False, False):
        stats.add(ended(success=success, episode_return=0.0, env_steps=1))
    restored = RolloutStats(recent_episodes=2)
    restored.load_state_dict(stats.state_dict())
    assert restored.sums()["successes"] == 0.0
