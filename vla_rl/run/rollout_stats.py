"""Statistics of recent training episodes. Filled in one thread, read in another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection

from vla_rl.replay.group_sampler import Outcome
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


def group_sums(outcomes: Collection[Outcome]) -> dict[str, float]:
    """Return sums over the recent groups, to be added over ranks."""
    return {
        "groups": float(len(outcomes)),
        "kept": float(sum(outcome.is_kept for outcome in outcomes)),
        "succeeded": float(sum(outcome.all_succeeded for outcome in outcomes)),
        "failed": float(sum(outcome.all_failed for outcome in outcomes)),
    }


def group_metrics(sums: dict[str, float], *, candidates: int) -> dict[str, float]:
    """Return shares of the recent groups from sums over all ranks; empty before the first group.

    Args:
        sums: `group_sums`.
        candidates: episodes that were played of every group.
    """
    groups, kept = sums["groups"], sums["kept"]
    if not groups:
        return {}
    return {
        "groups/kept": kept / groups,
        "groups/all_success": sums["succeeded"] / groups,
        "groups/all_fail": sums["failed"] / groups,
        **({"groups/episodes_per_useful": candidates * groups / kept} if kept else {}),
    }
