"""Plans of LIBERO's tasks under perturbations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from vla_rl.envs.kind import EnvBuilder, EnvPlan, PerturbedTasks
from vla_rl.envs.libero.perturbations.kinds import KINDS, Perturbation, parse_perturbations
from vla_rl.types import TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import LiberoEnv


def perturbed_tasks(plan: EnvPlan, asked: str, *, suite: Sequence[TaskInfo]) -> tuple[PerturbedTasks, ...]:
    """Return the tasks of a plan under each perturbation that was asked for.

    Args:
        plan: LIBERO's tasks.
        asked: like `camera:3,light:1-5`; see `parse_perturbations`.
        suite: all tasks of their suite, whose instructions a wrong one is taken from.

    Raises:
        ValueError: a name or a level does not exist.
    """
    try:
        perturbations = parse_perturbations(asked)
    except ValueError as error:
        raise ValueError(f"--perturb: {error}") from None
    return tuple(_under(one, plan, suite) for one in perturbations)


def _under(perturbation: Perturbation, plan: EnvPlan, suite: Sequence[TaskInfo]) -> PerturbedTasks:
    kind, level = KINDS[perturbation.kind], perturbation.level
    tasks = tuple(replace(task, language=kind.instruction(level, task, suite)) for task in plan.tasks)
    definition = {
        "kind": kind.name,
        "level": level,
        "group": kind.group,
        "what": kind.summary,
        "numbers": kind.numbers(level),
        "source": kind.source,
    }
    if kind.tells:
        definition["instructions"] = {str(task.task_id): kind.instruction(level, task, suite) for task in suite}
    return PerturbedTasks(
        kind=kind.name,
        level=level,
        definition=definition,
        tasks=tasks,
        builders=_changed(plan.builders, perturbation),
        filming_builders=_changed(plan.filming_builders, perturbation),
    )


def _changed(builders: Sequence[EnvBuilder], perturbation: Perturbation) -> tuple[EnvBuilder, ...]:
    return tuple(partial(cast("Callable[..., LiberoEnv]", it), perturbation=perturbation) for it in builders)
