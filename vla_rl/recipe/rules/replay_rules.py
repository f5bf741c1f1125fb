"""Rules about the replay ring and its segments."""

from __future__ import annotations

from vla_rl.envs.kinds import EnvSection
from vla_rl.policies.kind import PolicySection
from vla_rl.recipe.sections import ReplaySection
from vla_rl.recipe.sizes import decisions_per_episode
from vla_rl.section import Problem


def _ring_can_start(replay: ReplaySection) -> Problem | None:
    if replay.min_decisions > replay.capacity:
        return Problem(
            path="replay.min_decisions",
            rule="the ring must be able to hold what the first update waits for",
            found=f"{replay.min_decisions} with replay.capacity {replay.capacity}",
            allowed=f"1..{replay.capacity}",
        )
    return None


def _segment_fits_ring(replay: ReplaySection) -> Problem | None:
    if replay.segment_length > replay.capacity:
        return Problem(
            path="replay.segment_length",
            rule="a segment must fit in the ring",
            found=f"{replay.segment_length} with replay.capacity {replay.capacity}",
            allowed=f"1..{replay.capacity}",
        )
    return None


def _segment_fits_episode(env: EnvSection, policy: PolicySection, replay: ReplaySection) -> Problem | None:
    longest = decisions_per_episode(env, policy)
    if policy.sees == env.observes and replay.segment_length > longest:  # an invalid pair has no episodes
        return Problem(
            path="replay.segment_length",
            rule="a segment lies in one episode; what is longer is padding that the learner computes for nothing",
            found=f"{replay.segment_length}, and an episode has at most {longest} decisions",
            allowed=f"1..{longest}",
        )
    return None


RULES = (_ring_can_start, _segment_fits_ring, _segment_fits_episode)
