"""Evaluations that a supervised recipe asks for: their options, whether they can be made, and the closing one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.outcome import EvaluationReport
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.while_training import check_options
from vla_rl.reporting.run_layout import EVALUATIONS
from vla_rl.sft.plan import SupervisedPlan
from vla_rl.sft.supervised_run import Say
from vla_rl.sft.written_policy import check_suite, demonstrated


def options_of_supervised(plan: SupervisedPlan) -> EvalOptions:
    """Return the options of the recipe's evaluations."""
    section, suite = plan.recipe.evaluation, plan.recipe.demos.suite
    assert suite is not None, "the recipe's rules ask for one"
    return EvalOptions(
        suites=(suite,),
        tasks=None if section.tasks == "all" else tuple(section.tasks),
        episodes_per_task=section.episodes_per_task,
        workers=section.workers,
        seeds=(plan.recipe.seed,),
        init_states=section.init_states,
        horizon=section.horizon,
        video=section.video,
    )


def check_evaluations(plan: SupervisedPlan) -> None:
    """Plan the recipe's evaluations, so that what cannot be evaluated is told before the training.

    The tiny model stands for the policy, which does not exist yet.

    Raises:
        ValueError: an evaluation would be refused, or the suite is not the demonstrations'; names the field.
    """
    recipe = plan.recipe
    if not recipe.evaluation.episodes_per_task:
        check_suite(plan)
        return
    source = replace(
        find_policy("tiny", profile="auto"),
        location=recipe.name,
        training=demonstrated(plan),
        num_images=len(recipe.demos.cameras),
    )
    check_options(source, options_of_supervised(plan), workers="evaluation.workers")
    check_suite(plan)


def evaluate_policy(
    plan: SupervisedPlan, policy: Path, run_dir: Path, optimizer_steps: int, say: Say
) -> EvaluationReport:
    """Play the recipe's closing evaluation with a written policy."""
    say(f"evaluating {policy} of optimizer step {optimizer_steps}")
    out = run_dir / EVALUATIONS / f"optimizer_step_{optimizer_steps}"
    return evaluate(policy, replace(options_of_supervised(plan), out=out))
