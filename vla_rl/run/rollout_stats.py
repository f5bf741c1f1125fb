"""Statistics of recent training episodes. Filled in one thread, read in another."""

from __future__ import annotations

import threading
from collections import deque

from vla_rl.workers.episodes import EpisodeRecord


class RolloutStats:
    """Last episodes of one cell, and their total number."""

    def __init__(self, *, recent_episodes: int) -> None:
        self._recent: deque[EpisodeRecord] = deque(maxlen=recent_episodes)
        self._lock = threading.Lock()

    def add(self, record: EpisodeRecord) -> None:
        """Add one ended episode."""
        with self._lock:
            self._recent.append(record)

    def sums(self) -> dict[str, float]:
        """Return sums over the recent episodes, to be added over ranks: episodes, successes, returns, env steps."""
        with self._lock:
            recent = list(self._recent)
        return {
            "episodes": float(len(recent)),
            "successes": float(sum(record.success for record in recent)),
            "returns": float(sum(record.episode_return for record in recent)),
            "env_steps": float(sum(record.env_steps for record in recent)),
        }


def rollout_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Return means of the recent episodes from sums over all ranks; empty before the first episode."""
    episodes = sums["episodes"]
    if not episodes:
        return {}
    return {
        "rollout/success_rate": sums["successes"] / episodes,
        "rollout/return": sums["returns"] / episodes,
        "rollout/episode_length": sums["env_steps"] / episodes,
    }
