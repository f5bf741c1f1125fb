"""Parts that the plans of all studies have: names on their axes, and a recipe that all runs share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from vla_rl.errors import UserError, preflight
from vla_rl.recipe import Recipe, find_recipe, load_recipe
from vla_rl.run.estimate import estimate_memory
from vla_rl.run.plan import TrainingPlan, plan_of_sizes, resolve_device
from vla_rl.studies.pace import Memory

SIMILAR = 0.75  # of a name to one that may have been meant
OF_EVERY_RUN = (  # overrides of every run of a study
    # Runs are compared at the end of equal budgets: a recipe's other ends would make some shorter.
    "budget.minutes=null",
    "budget.stop_at_success=null",
    "budget.stop_after_evaluations_without_gain=null",
    # The study would not read a run's own evaluations, and its price does not count them.
    "checkpoint.keep_best=false",
    "evaluation.episodes_per_task=0",
    "evaluation.tasks=all",  # the recipe's may be none of the study's
    "evaluation.every_optimizer_steps=null",
)


def require_known(option: str, found: Sequence[str], known: Sequence[str]) -> None:
    """Check the names of one axis of a study.

    Raises:
        UserError: a name is not known or stands twice, or there is none.
    """
    unknown = {name: difflib.get_close_matches(name, known, 1, SIMILAR) for name in found if name not in known}
    if unknown:
        told = [repr(name) + "".join(f" (did you mean {it!r}?)" for it in close) for name, close in unknown.items()]
        allowed = "" if all(unknown.values()) else f"; allowed are {', '.join(known)}"
        raise UserError(f"{option}: found {', '.join(told)}{allowed}")
    if not found or len(set(found)) != len(found):
        raise UserError(f"{option}: found {','.join(found) or 'nothing'}; at least one name, and none twice")


def base_recipe(recipe: str, *, env: str) -> Recipe:
    """Return the recipe that all runs of a study share.

    Args:
        recipe: name or path.
        env: the environment that it must have.

    Raises:
        UserError: it is not valid, or has another environment.
    """
    base = load_recipe(find_recipe(recipe))
    if base.env.name != env:
        raise UserError(
            f"--recipe: env.name is {base.env.name} in {recipe}; this study needs a recipe with env.name {env}"
        )
    return base


def memory_of_run(recipe: Recipe) -> Memory:
    """Return the estimated memory of a run.

    Raises:
        UserError: the recipe is not possible here.
    """
    with preflight():
        return memory_of_plan(plan_of_sizes(recipe))


def memory_of_plan(plan: TrainingPlan) -> Memory:
    """Return the estimated memory of a run.

    Raises:
        ValueError: the ring is too small.
    """
    memory = estimate_memory(plan, num_ranks=1)
    return Memory(memory.host, memory.gpu if memory.on_gpu else 0)


def computes_on_gpu(recipe: Recipe) -> bool:
    """Return whether a run computes on a GPU of this machine.

    Raises:
        UserError: the recipe asks for a GPU, and there is none.
    """
    with preflight():
        return resolve_device(recipe.runtime.device) != "cpu"


def in_words(axes: Sequence[Sequence[object]], *, seeds: int) -> str:
    """Return the runs of a study in a line, such as "push-v3, reach-v3 × ppo × stale × seeds 0 to 4".

    Args:
        axes: names on every axis but the seeds.
        seeds: their number.
    """
    last = "seed 0" if seeds == 1 else f"seeds 0 to {seeds - 1}"
    return " × ".join([*(", ".join(map(str, names)) for names in axes), last])
