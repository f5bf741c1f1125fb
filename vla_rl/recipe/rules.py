"""Rules across sections: combinations that each section alone allows.

Every rule names the sections it reads through its parameters, so that it can also be checked when other sections are
invalid: a recipe reports all its faults at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from vla_rl.credit import Credit
from vla_rl.envs.kinds import ENVIRONMENTS, EnvSection
from vla_rl.policies.kind import PolicySection
from vla_rl.policies.kinds import POLICIES
from vla_rl.recipe.regimes import SPANS, STALE_REUSE, Regime, RegimeName, regime_of_run
from vla_rl.recipe.sections import (
    BudgetSection,
    EvaluationSection,
    LearnerSection,
    OptimizerSteps,
    ReplaySection,
    RuntimeSection,
)
from vla_rl.rl.optimizer_section import AdamWSection
from vla_rl.section import Problem, TimeLimit


def _policy_sees_enough(env: EnvSection, policy: PolicySection) -> Problem | None:
    if policy.sees == env.observes:
        return None
    if policy.sees == "state":
        rule = f"'{policy.name}' sees states only, and {env.state_lacks}"
    else:
        rule = f"'{policy.name}' looks at camera frames, and this environment gives states only"
    policies = [name for name, kind in POLICIES.items() if kind.sees == env.observes]
    envs = [f"'{name}'" for name, kind in ENVIRONMENTS.items() if kind.observes == policy.sees]
    return Problem(
        path="policy.name",
        rule=rule,
        found=f"{policy.name} with env.name '{env.name}'",
        allowed=f"{', '.join(policies)}, or env.name {' or '.join(envs)}",
    )


def decisions_per_episode(env: EnvSection, policy: PolicySection) -> int:
    """Return the most decisions that fit in one episode: a policy has chunks of its own, or takes the environment's."""
    own = None if env.states is None else env.states.chunk_size
    return env.decisions_per_episode(policy.chunk_size or own or 1)


def _compiled_policy_has_layers(policy: PolicySection, learner: LearnerSection) -> Problem | None:
    if learner.compile == "layers" and not policy.has_layers:
        layered = " or ".join(f"'{name}'" for name, kind in POLICIES.items() if kind.has_layers)
        return Problem(
            path="learner.compile",
            rule="'layers' are those of a language model",
            found=f"layers with policy.name '{policy.name}'",
            allowed=f"off, or policy.name {layered}",
        )
    return None


def _compiled_layers_are_whole(learner: LearnerSection) -> Problem | None:
    if learner.compile == "layers" and learner.strategy == "deepspeed" and learner.zero_stage == 3:
        return Problem(
            path="learner.compile",
            rule="stage 3 of ZeRO gathers the weights of every module by hooks that cannot be compiled",
            found="layers with learner.zero_stage 3",
            allowed="off, or learner.zero_stage 1 or 2",
        )
    return None


def _ring_can_start(replay: ReplaySection) -> Problem | None:
    if replay.min_decisions > replay.capacity:
        return Problem(
            path="replay.min_decisions",
            rule="the ring must be able to hold what the first update waits for",
            found=f"{replay.min_decisions} with replay.capacity {replay.capacity}",
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


def _segment_fits_ring(replay: ReplaySection) -> Problem | None:
    if replay.segment_length > replay.capacity:
        return Problem(
            path="replay.segment_length",
            rule="a segment must fit in the ring",
            found=f"{replay.segment_length} with replay.capacity {replay.capacity}",
            allowed=f"1..{replay.capacity}",
        )
    return None


def _evaluation_tasks_are_trained(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.tasks == "all":
        return None
    trained = env.task_ids
    unknown = [task for task in evaluation.tasks if task not in trained]
    if unknown:
        return Problem(
            path="evaluation.tasks",
            rule="the closing evaluation is made on tasks of env.tasks; for others there is `vla-rl eval`",
            found=str(unknown),
            allowed=str(trained),
        )
    return None


def _serial_has_one_rank(runtime: RuntimeSection, learner: LearnerSection) -> Problem | None:
    if runtime.mode == "serial" and (learner.strategy != "single"):
        return Problem(
            path="learner.strategy",
            rule="runtime.mode 'serial' runs everything in one process, so there is one rank",
            found=learner.strategy,
            allowed="single, or runtime.mode 'async'",
        )
    return None


def _critic_only_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    steps = optimizer.policy_begins_at
    total = budget.optimizer_steps
    if steps >= total:
        return Problem(
            path="optimizer.critic_only_steps",
            rule="the policy must be trained after the critic, or it never is",
            found=f"{steps} with budget.optimizer_steps {total}",
            allowed=f"0..{total - 1}, or a larger budget.optimizer_steps",
        )
    return None


def _policy_warmup_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    before = optimizer.policy_begins_at
    return _warmup_ends("policy_warmup", optimizer.policy_warmup, optimizer, budget, before=before)


def _value_warmup_ends(optimizer: AdamWSection, budget: OptimizerSteps) -> Problem | None:
    return _warmup_ends("value_warmup", optimizer.value_warmup, optimizer, budget)


def _warmup_ends(
    field: str, warmup: int, optimizer: AdamWSection, budget: OptimizerSteps, *, before: int = 0
) -> Problem | None:
    """Check a warm-up that begins after the first `before` optimizer steps."""
    total = budget.optimizer_steps - before
    if optimizer.schedule != "constant" and warmup >= total > 0:
        after = f" after optimizer.critic_only_steps {before}" if before else ""
        return Problem(
            path=f"optimizer.{field}",
            rule=f"the warm-up must end before the run, or the {optimizer.schedule} schedule never begins",
            found=f"{warmup}{after} with budget.optimizer_steps {budget.optimizer_steps}",
            allowed=f"0..{total - 1}, a larger budget.optimizer_steps, or optimizer.schedule 'constant'",
        )
    return None


def _regime(name: str, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection) -> Regime:
    return regime_of_run(
        name,
        capacity=replay.capacity,
        decisions_per_update=learner.batch_segments * replay.segment_length,
        optimizer_steps=budget.optimizer_steps,
        publish_every=learner.publish_every,
    )


def with_regime(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with its regime's values, if these can be computed and are not written.

    Invalid data is returned unchanged; validation reports its problems.
    """
    name, replay = data.get("regime"), data.get("replay", {})
    if not isinstance(name, str) or name not in SPANS or not isinstance(replay, Mapping):
        return dict(data)
    try:
        learner = LearnerSection.model_validate(data.get("learner", {}))
        budget = BudgetSection.model_validate(data.get("budget", {}))
        regime = _regime(name, ReplaySection.model_validate(replay), learner, budget)
    except ValidationError:
        return dict(data)
    settings = {"replay_ratio": regime.replay_ratio, "old_threshold": regime.old_threshold}
    return {**data, "replay": {**settings, **replay}}


def with_time_limit(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with the environment's own `targets.time_limit`, if none is written.

    Invalid data is returned unchanged; validation reports its problems.
    """
    usual = usual_time_limit(data.get("env"))
    targets = data.get("targets", {"name": "gae"})
    if isinstance(targets, Credit):
        targets = targets.model_dump(by_alias=True)
    if usual is None or not isinstance(targets, Mapping) or targets.get("time_limit") is not None:
        return dict(data)
    return {**data, "targets": {**targets, "time_limit": usual}}


def usual_time_limit(env: Any) -> TimeLimit | None:  # noqa: ANN401 - a section, or whatever was given for one
    """Return the default `targets.time_limit` of an environment; None if it is not an environment."""
    name = env.get("name") if isinstance(env, Mapping) else getattr(env, "name", None)
    kind = ENVIRONMENTS.get(name) if isinstance(name, str) else None
    return None if kind is None else kind.usual_time_limit


def _regime_is_kept(
    regime: RegimeName | None, replay: ReplaySection, learner: LearnerSection, budget: BudgetSection
) -> Problem | None:
    if regime is None:
        return None
    meant = _regime(regime, replay, learner, budget)
    for field in ("replay_ratio", "old_threshold"):
        found, allowed = getattr(replay, field), getattr(meant, field)
        if field in replay.model_fields_set and found != allowed:
            return Problem(
                path=f"replay.{field}",
                rule=f"regime '{regime}' sets it from the capacity, the batch and the budget",
                found=str(found),
                allowed=f"{allowed:g}, or leave it out",
            )
    if regime == "stale" and meant.replay_ratio < STALE_REUSE:
        return Problem(
            path="regime",
            rule="stale means that old data is used tens of times",
            found=f"{meant.replay_ratio:g} times",
            allowed="a larger budget.optimizer_steps or batch, or a smaller replay.capacity",
        )
    return None


RULES: tuple[Callable[..., Problem | None], ...] = (
    _policy_sees_enough,
    _compiled_policy_has_layers,
    _compiled_layers_are_whole,
    _ring_can_start,
    _segment_fits_ring,
    _segment_fits_episode,
    _evaluation_tasks_are_trained,
    _serial_has_one_rank,
    _critic_only_ends,
    _policy_warmup_ends,
    _value_warmup_ends,
    _regime_is_kept,
)


def broken_rules(sections: Mapping[str, Any]) -> list[Problem]:
    """Check every rule whose sections are all present.

    Args:
        sections: the recipe's fields by name, without invalid ones.
    """
    found: list[Problem] = []
    for rule in RULES:
        names = inspect.signature(rule).parameters
        if all(name in sections for name in names):
            broken = rule(**{name: sections[name] for name in names})
            if broken is not None:
                found.append(broken)
    return found
