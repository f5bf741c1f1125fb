"""Rules about demonstrations, of recipes of the supervised stage."""

from __future__ import annotations

from vla_rl.policies.kind import PolicySection
from vla_rl.policies.kinds import POLICIES
from vla_rl.recipe.supervised_sections import DemosSection, SupervisedEvaluationSection
from vla_rl.section import Problem


def _policy_sees_pictures(policy: PolicySection) -> Problem | None:
    if policy.sees == "frames":
        return None
    return Problem(
        path="policy.name",
        rule="demonstrations show pictures, and this policy sees states only",
        found=policy.name,
        allowed=", ".join(name for name, kind in POLICIES.items() if kind.sees == "frames"),
    )


def _evaluation_has_a_suite(demos: DemosSection, evaluation: SupervisedEvaluationSection) -> Problem | None:
    if evaluation.episodes_per_task and demos.suite is None:
        return Problem(
            path="evaluation.episodes_per_task",
            rule="an evaluation plays tasks of a suite of LIBERO",
            found=f"{evaluation.episodes_per_task} with demos.suite null",
            allowed="0, or a demos.suite",
        )
    return None


def _statistics_are_own(policy: PolicySection) -> Problem | None:
    found = getattr(policy, "statistics", None)
    if found is None:
        return None
    return Problem(
        path="policy.statistics",
        rule="actions are scaled by the statistics of the demonstrations themselves",
        found=found,
        allowed="null; demos.key names them",
    )


RULES = (_policy_sees_pictures, _evaluation_has_a_suite, _statistics_are_own)
