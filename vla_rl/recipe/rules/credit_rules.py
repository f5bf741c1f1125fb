"""Rules about credit: the critic that it needs, and the groups of episodes that it compares."""

from __future__ import annotations

import math
from typing import get_args

from vla_rl.credit import Credit
from vla_rl.envs.kinds import EnvSection
from vla_rl.policies.kind import NO_CRITIC, PolicySection
from vla_rl.recipe.sections import LearnerSection, ReplaySection, RolloutSection
from vla_rl.recipe.sizes import decisions_per_episode, smallest_ring
from vla_rl.rl.loss_weights import LossWeights
from vla_rl.rl.optimizer_section import AdamWSection, OptimizerSection
from vla_rl.section import Problem


def _critic_is_used(policy: PolicySection, targets: Credit) -> Problem | None:
    field = type(policy).model_fields.get("value_head")
    if field is None or policy.has_critic == targets.needs_values:
        return None
    if policy.has_critic:
        return Problem(
            path="policy.value_head",
            rule=f"targets '{targets.kind()}' compares episodes with each other, so no critic is built",
            found=str(getattr(policy, "value_head", "")),
            allowed=NO_CRITIC,
        )
    critics = [kind for kind in get_args(field.annotation) if kind != NO_CRITIC]
    return Problem(
        path="policy.value_head",
        rule=f"targets '{targets.kind()}' is made of a critic's values",
        found=NO_CRITIC,
        allowed=f"{', '.join(critics)}, or targets.name 'group'",
    )


def _critic_is_there_to_train_alone(optimizer: AdamWSection, targets: Credit) -> Problem | None:
    if not isinstance(optimizer, OptimizerSection) or not optimizer.critic_only_steps or targets.needs_values:
        return None
    return Problem(
        path="optimizer.critic_only_steps",
        rule=f"targets '{targets.kind()}' has no critic",
        found=str(optimizer.critic_only_steps),
        allowed="0",
    )


def _episodes_are_whole(targets: Credit, loss: LossWeights) -> Problem | None:
    if loss.aggregation == "token" or targets.groups is not None:
        return None
    return Problem(
        path="loss.aggregation",
        rule="only groups put whole episodes into a batch",
        found=f"{loss.aggregation} with targets.name '{targets.kind()}'",
        allowed="token, or targets.name 'group'",
    )


def _batch_is_whole_groups(
    env: EnvSection, policy: PolicySection, replay: ReplaySection, learner: LearnerSection, targets: Credit
) -> Problem | None:
    longest = decisions_per_episode(env, policy)
    if targets.groups is None or policy.sees != env.observes or replay.segment_length > longest:
        return None
    of_episode = math.ceil(longest / replay.segment_length)
    of_group = targets.groups.size * of_episode
    if learner.batch_segments % of_group == 0:
        return None
    return Problem(
        path="learner.micro_batch",
        rule=f"an update takes whole groups: {targets.groups.size} episodes of up to {of_episode} segments",
        found=f"{learner.batch_segments} segments (micro_batch times accumulation)",
        allowed=f"a multiple of {of_group}, or a larger replay.segment_length (at most {longest})",
    )


def _ring_holds_groups(
    env: EnvSection,
    policy: PolicySection,
    replay: ReplaySection,
    learner: LearnerSection,
    rollout: RolloutSection,
    targets: Credit,
) -> Problem | None:
    needs, longest = targets.groups, decisions_per_episode(env, policy)
    if needs is None or policy.sees != env.observes:
        return None
    slots = rollout.num_workers * rollout.envs_per_worker
    groups = max(1, learner.batch_segments // (needs.size * math.ceil(longest / replay.segment_length)))
    smallest = smallest_ring(needs, slots=slots, groups=groups, longest=longest)
    if replay.capacity >= smallest:
        return None
    return Problem(
        path="replay.capacity",
        rule=f"the ring must hold the {groups} groups of an update, each of {needs.candidates} episodes, and those in "
        f"the making by {slots} environments",
        found=str(replay.capacity),
        allowed=f">= {smallest}; several times as many where groups are left out (targets.keep)",
    )


def _uses_allow_the_ratio(replay: ReplaySection, targets: Credit) -> Problem | None:
    uses = None if targets.groups is None else targets.groups.max_uses
    if uses is None or replay.replay_ratio <= uses:
        return None
    return Problem(
        path="replay.replay_ratio",
        rule="a decision is consumed at most as often as its group is used",
        found=f"{replay.replay_ratio:g} with targets.uses {uses}",
        allowed=f"at most {uses}, or targets.uses=null",
    )


RULES = (
    _critic_is_used,
    _critic_is_there_to_train_alone,
    _episodes_are_whole,
    _batch_is_whole_groups,
    _ring_holds_groups,
    _uses_allow_the_ratio,
)
