"""Statistics of recent training episodes. Filled in one thread, read in another."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from vla_rl.replay.group_sampler import Outcome
from vla_rl.workers.episodes import EpisodeRecord


@dataclass(frozen=True, slots=True)
class _Ended:
    success: bool
    episode_return: float
    env_steps: int


class RolloutStats:
    """Last episodes of one cell."""

    def __init__(self, *, recent_episodes: int) -> None:
        self._recent: deque[_Ended] = deque(maxlen=recent_episodes)
        self._lock = threading.Lock()

    def add(self, record: EpisodeRecord) -> None:
        """Add one ended episode."""
        with self._lock:
            self._recent.append(_Ended(bool(record.success), float(record.episode_return), int(record.env_steps)))

    def state_dict(self) -> dict[str, Any]:
        """Return the recent episodes as JSON, oldest first."""
        return {"episodes": [asdict(episode) for episode in self._episodes()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the episodes of `state_dict`; of more than there is room for, the newest count."""
        with self._lock:
            self._recent.extend(_Ended(**episode) for episode in state["episodes"])

    def _episodes(self) -> list[_Ended]:
        with self._lock:
            return list(self._recent)

    def sums(self) -> dict[str, float]:
        """Return sums over the recent episodes, to be added over ranks: episodes, successes, returns, env steps."""
        recent = self._episodes()
        return {
            "episodes": float(len(recent)),
            "successes": float(sum(episode.success for episode in recent)),
            "returns": float(sum(episode.episode_return for episode in recent)),
            "env_steps": float(sum(episode.env_steps for episode in recent)),
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
