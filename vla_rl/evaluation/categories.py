"""Success by category of tasks, for suites that have categories; LIBERO-plus publishes its numbers in this form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vla_rl.envs.kind import EnvPlan
from vla_rl.evaluation.episode_log import EpisodeResult
from vla_rl.evaluation.eval_results import group_by
from vla_rl.evaluation.statistics import Interval, wilson_interval


@dataclass(frozen=True, slots=True)
class CategorySummary:
    """Success in the tasks of one category of a suite. Tasks have equal weight."""

    suite: str
    category: str
    tasks: int
    episodes: int
    successes: int
    success_rate: float  # mean of the tasks' rates
    wilson: Interval  # of all episodes as one sample

    def __str__(self) -> str:
        return (
            f"{self.suite}, {self.category}: {self.successes}/{self.episodes} in {self.tasks} tasks, "
            f"{100 * self.success_rate:.1f}% ({100 * self.wilson.low:.1f} to {100 * self.wilson.high:.1f})"
        )


def summarise_categories(episodes: Iterable[EpisodeResult], plans: Sequence[EnvPlan]) -> list[CategorySummary]:
    """Summarise episodes by suite and category, in alphabetical order; tasks without a category are left out."""
    categories = {
        (plan.tasks[0].suite, task_id): category
        for plan in plans
        if plan.folder is not None
        for task_id, category in plan.folder.categories.items()
        if category
    }
    known = [one for one in sorted(episodes, key=lambda it: it.key) if (one.suite, one.task_id) in categories]
    groups = group_by(known, lambda one: (one.suite, categories[one.suite, one.task_id]))
    return [_summary(suite, category, own) for (suite, category), own in sorted(groups.items())]


def _summary(suite: str, category: str, episodes: Sequence[EpisodeResult]) -> CategorySummary:
    by_task = group_by(episodes, lambda one: one.task_id)
    rates = [sum(it.success for it in own) / len(own) for own in by_task.values()]
    successes = sum(it.success for it in episodes)
    return CategorySummary(
        suite=suite,
        category=category,
        tasks=len(by_task),
        episodes=len(episodes),
        successes=successes,
        success_rate=sum(rates) / len(rates),
        wilson=wilson_interval(successes, len(episodes)),
    )
