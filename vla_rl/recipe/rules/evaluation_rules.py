"""Rules about evaluations while training, and about what goes by them."""

from __future__ import annotations

from vla_rl.envs.kind import EnvOptions
from vla_rl.envs.kinds import EnvSection
from vla_rl.recipe.sections import BudgetSection, CheckpointSection, EvaluationSection, PlayedSection
from vla_rl.section import Problem


def _evaluation_tasks_are_trained(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.tasks == "all":
        return None
    trained = env.task_ids
    unknown = [task for task in evaluation.tasks if task not in trained]
    if unknown:
        return Problem(
            path="evaluation.tasks",
            rule="evaluations of a run are made on tasks of env.tasks; for others there is `vla-rl eval`",
            found=str(unknown),
            allowed=str(trained),
        )
    return None


def _evaluation_has_episodes(evaluation: PlayedSection) -> Problem | None:
    if evaluation.every_optimizer_steps is None or evaluation.episodes_per_task:
        return None
    return Problem(
        path="evaluation.episodes_per_task",
        rule="evaluations while training play episodes",
        found=f"0 with evaluation.every_optimizer_steps {evaluation.every_optimizer_steps}",
        allowed=">= 1, or evaluation.every_optimizer_steps=null",
    )


def _evaluation_states_exist(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.init_states is None:
        return None
    try:
        changes = env.evaluation_changes(env.suite_name, EnvOptions(init_states=evaluation.init_states))
        type(env).model_validate({**env.model_dump(by_alias=True), **changes})
    except ValueError:  # a validation error too
        return Problem(
            path="evaluation.init_states",
            rule=f"'{env.suite_name}' has no such initial states",
            found=evaluation.init_states,
            allowed="null, sampled, or another suite",
        )
    return None


def _best_is_measured(checkpoint: CheckpointSection, evaluation: EvaluationSection) -> Problem | None:
    return _measured("checkpoint.keep_best", "false", checkpoint.keep_best, evaluation)


def _target_is_measured(budget: BudgetSection, evaluation: EvaluationSection) -> Problem | None:
    return _measured("budget.stop_at_success", "null", budget.stop_at_success, evaluation)


def _gain_is_measured(budget: BudgetSection, evaluation: EvaluationSection) -> Problem | None:
    field = "stop_after_evaluations_without_gain"
    return _measured(f"budget.{field}", "null", budget.stop_after_evaluations_without_gain, evaluation)


def _measured(path: str, off: str, value: object, evaluation: EvaluationSection) -> Problem | None:
    """Check that there are the evaluations which a field goes by."""
    if not value or evaluation.every_optimizer_steps is not None:
        return None
    return Problem(
        path=path,
        rule="goes by the evaluations while training, and there are none",
        found=f"{str(value).lower()} with evaluation.every_optimizer_steps null",
        allowed=f"{off}, or a number of optimizer steps as evaluation.every_optimizer_steps",
    )


def _videos_show_frames(env: EnvSection, evaluation: EvaluationSection) -> Problem | None:
    if evaluation.video is None or env.observes == "frames":
        return None
    return Problem(
        path="evaluation.video",
        rule=f"environment '{env.name}' has no cameras",
        found=evaluation.video,
        allowed="null",
    )


SHARED = (_evaluation_has_episodes,)  # also of recipes of the supervised stage
RULES = (
    _evaluation_tasks_are_trained,
    *SHARED,
    _evaluation_states_exist,
    _best_is_measured,
    _target_is_measured,
    _gain_is_measured,
    _videos_show_frames,
)
