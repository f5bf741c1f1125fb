"""Rules about what a policy sees, and which policies can be compiled."""

from __future__ import annotations

from vla_rl.envs.kinds import ENVIRONMENTS, EnvSection
from vla_rl.policies.kind import PolicySection
from vla_rl.policies.kinds import POLICIES
from vla_rl.recipe.sections import EngineSection
from vla_rl.section import Problem


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


def _compiled_policy_has_layers(policy: PolicySection, learner: EngineSection) -> Problem | None:
    if learner.compile == "layers" and not policy.has_layers:
        layered = " or ".join(f"'{name}'" for name, kind in POLICIES.items() if kind.has_layers)
        return Problem(
            path="learner.compile",
            rule="'layers' are those of a language model",
            found=f"layers with policy.name '{policy.name}'",
            allowed=f"off, or policy.name {layered}",
        )
    return None


def _compiled_layers_are_whole(learner: EngineSection) -> Problem | None:
    if learner.compile == "layers" and learner.strategy == "deepspeed" and learner.zero_stage == 3:
        return Problem(
            path="learner.compile",
            rule="stage 3 of ZeRO gathers the weights of every module by hooks that cannot be compiled",
            found="layers with learner.zero_stage 3",
            allowed="off, or learner.zero_stage 1 or 2",
        )
    return None


SHARED = (_compiled_policy_has_layers, _compiled_layers_are_whole)  # also of recipes of the supervised stage
RULES = (_policy_sees_enough, *SHARED)
