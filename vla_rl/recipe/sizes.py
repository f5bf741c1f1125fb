"""Sizes that follow from several sections."""

from __future__ import annotations

import math

from vla_rl.credit import GroupNeeds
from vla_rl.envs.kinds import EnvSection
from vla_rl.policies.kind import PolicySection


def decisions_per_episode(env: EnvSection, policy: PolicySection) -> int:
    """Return the most decisions that fit in one episode: a policy has chunks of its own, or takes the environment's."""
    own = None if env.states is None else env.states.chunk_size
    return env.decisions_per_episode(policy.chunk_size or own or 1)


def smallest_ring(needs: GroupNeeds, *, slots: int, groups: int, longest: int) -> int:
    """Return the decisions of the smallest ring that holds the groups of an update and those in the making.

    Args:
        needs: sizes and limits of the groups.
        slots: environments that play.
        groups: groups of an update.
        longest: decisions of the longest episode.
    """
    turns = needs.candidates // math.gcd(needs.candidates, slots)
    teams = slots // math.gcd(needs.candidates, slots)
    return slots * (longest + 1) * (turns * (math.ceil(groups / teams) + needs.max_lead) + 1)
