"""Completing a recipe: values that follow from others, where nothing else is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vla_rl.credit import KINDS as CREDITS
from vla_rl.credit import Credit
from vla_rl.envs.kinds import ENVIRONMENTS
from vla_rl.policies.kind import NO_CRITIC
from vla_rl.policies.kinds import POLICIES
from vla_rl.recipe.regimes import SPANS, regime_of
from vla_rl.recipe.sections import BudgetSection, LearnerSection, ReplaySection
from vla_rl.section import Section, TimeLimit


def completed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with all values that follow from others, where nothing else is written."""
    return without_critic(with_time_limit(with_regime(data)))


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
        regime = regime_of(name, ReplaySection.model_validate(replay), learner, budget)
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
    kind = CREDITS.get(str(targets.get("name")))
    has_choice = kind is None or kind.needs_values  # without a critic nothing can stand for what would follow
    return {**data, "targets": {**targets, "time_limit": usual if has_choice else "end"}}


def without_critic(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's raw data with what follows from targets without a critic, where nothing else is written.

    The policy gets none (`policy.value_head`), and advantages, which each group has centred, are not normalised again
    over the batch (`loss.normalize_advantages`). Invalid data is returned unchanged; validation reports its problems.
    """
    targets, policy, loss = data.get("targets"), data.get("policy"), data.get("loss", {})
    name = targets.get("name") if isinstance(targets, Mapping) else getattr(targets, "name", None)
    kind = CREDITS.get(name) if isinstance(name, str) else None
    if kind is None or kind.needs_values:
        return dict(data)
    changed = {**data, "policy": _written(policy), "loss": _written(loss)}
    if isinstance(changed["policy"], Mapping):
        of_policy = POLICIES.get(str(changed["policy"].get("name")))
        if of_policy is not None and "value_head" in of_policy.model_fields:
            changed["policy"] = {"value_head": NO_CRITIC, **changed["policy"]}
    if isinstance(changed["loss"], Mapping):
        changed["loss"] = {"normalize_advantages": False, **changed["loss"]}
    return changed


def _written(section: Any) -> Any:  # noqa: ANN401 - whatever was given
    """Return what was written of a section that was made in code; anything else as it is."""
    return section.model_dump(by_alias=True, exclude_unset=True) if isinstance(section, Section) else section


def usual_time_limit(env: Any) -> TimeLimit | None:  # noqa: ANN401 - a section, or whatever was given for one
    """Return the default `targets.time_limit` of an environment; None if it is not an environment."""
    name = env.get("name") if isinstance(env, Mapping) else getattr(env, "name", None)
    kind = ENVIRONMENTS.get(name) if isinstance(name, str) else None
    return None if kind is None else kind.usual_time_limit
