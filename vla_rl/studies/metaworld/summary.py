"""Meta-World study as parts of words and tables, from which both the page and the text are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from vla_rl.reporting.text import number, percent
from vla_rl.studies.metaworld.beside_paper import paper_part
from vla_rl.studies.metaworld.missing import missing_part
from vla_rl.studies.metaworld.results import STALENESS, TITLES, UTILIZATION, WHOLE_RUN, RunResult, RunTable
from vla_rl.studies.metaworld.scores import MAX_RETURN, task_sets
from vla_rl.studies.metaworld.solving import solving_part, solving_words
from vla_rl.studies.metaworld.study import Study
from vla_rl.studies.metaworld.words import words
from vla_rl.studies.pages import Part, between


def parts(study: Study) -> list[Part]:
    """Return all parts, most important first."""
    beside, solving = paper_part(study), solving_part(study.results)
    return [
        Part("In words", (*words(study), *solving_words(study.results))),
        *([missing_part(study.missing)] if study.missing else []),
        _score_part(study),
        *([beside] if beside is not None else []),
        _improvement_part(study),
        _return_part(study),
        *([solving] if solving is not None else []),
        _closing_part(study, "Staleness (closing means over runs)", (*STALENESS, "learner/kl")),
        _closing_part(study, "Use of the samples (closing means over runs)", UTILIZATION),
        _whole_part(study),
    ]


def _score_part(study: Study) -> Part:
    randoms = ", ".join(f"{task} {study.random_returns[task]:.0f}" for task in study.random_returns)
    return Part(
        "Scores",
        (
            f"Normalised score: (return − random) / ({MAX_RETURN:.0f} − random). Return of random actions: {randoms}.",
            "The first interval redraws seeds within each task, as if all runs were independent; the one by seed "
            "redraws seeds with all their tasks, and is rough over few seeds. An IQM drops the lowest and the highest "
            "quarter of the runs, so failed runs may show in the mean alone.",
            *_tasks_of_scores(study),
        ),
        ("regime", "surrogate", "IQM", "95 % interval", "by seed", "mean", "seeds × tasks"),
        tuple(
            (
                score.regime, score.surrogate, f"{score.iqm:.3f}", between(score.interval),
                between(score.interval_by_seed), f"{score.mean:.3f}", f"{score.seeds} × {len(score.tasks)}",
            )
            for score in study.scores
        ),
    )  # fmt: skip


def _tasks_of_scores(study: Study) -> Iterator[str]:
    """Name the tasks of the scores of every regime that has scores of several sets of tasks."""
    for regime in study.results.regimes:
        sets = task_sets(study.scores, regime)
        if len(sets) > 1:
            told = "; ".join(f"{len(tasks)} tasks: {', '.join(tasks)}" for tasks in sets)
            yield f"{regime}: only scores of the same tasks can be compared. {told}."


def _improvement_part(study: Study) -> Part:
    return Part(
        "Probability of improvement",
        (
            "Of any run of the first against any of the second on the same task; pairs have equal seed and task, and "
            "the exact sign test is two-sided: of the pairs as if they were independent, and with those of one "
            "seed, which share their first weights, as one. No p is corrected for the number of comparisons. The "
            "probability is of the runs of those seeds that have every task that both have, the test of all pairs.",
            "The first interval redraws the seeds of each surrogate within each task, as if all runs were independent; "
            "the one by seed redraws seeds with the runs of both on all tasks, and is rough over few seeds. It needs "
            "equal seeds of both.",
        ),
        (
            "regime", "first", "second", "P(first > second)", "95 % interval", "by seed", "seeds × tasks",
            "pairs higher, lower", "sign test p", "p by seed",
        ),
        tuple(
            (
                pair.regime, pair.first, pair.second, f"{pair.probability:.2f}", between(pair.interval, digits=2),
                between(pair.interval_by_seed, digits=2),
                f"{', '.join(map(str, dict.fromkeys(pair.seeds)))} × {len(pair.tasks)}",
                f"{pair.test.higher}, {pair.test.lower} of {pair.test.pairs}", f"{pair.test.p:.2g}",
                f"{pair.test.p_by_seed:.2g}",
            )
            for pair in study.improvements
        ),
    )  # fmt: skip


def _return_part(study: Study) -> Part:
    rows = []
    for task, regime, surrogate, by_seed in study.results.cells():
        returns = ", ".join(f"{result.closing_return:.0f}" for result in by_seed)
        success = percent(by_seed.mean("rollout/success_rate"), digits=1)
        rows.append((task, regime, surrogate, returns, success))
    header = ("task", "regime", "surrogate", "return by seed", "success, mean")
    return Part("Closing return of every run", (), header, tuple(rows))


def _closing_part(study: Study, title: str, metrics: Sequence[str]) -> Part:
    columns = {TITLES[name]: partial(RunTable.mean, metric=name) for name in metrics}
    return _part_over_tasks(study, title, columns)


def _whole_part(study: Study) -> Part:
    columns = {
        f"{TITLES[name]}, {where}": partial(RunTable.mean, metric=name, of=of)
        for name in WHOLE_RUN
        for where, of in (("whole run", RunResult.whole), ("closing", RunResult.closing))
    }
    return _part_over_tasks(study, "While the policy moved", columns)


def _part_over_tasks(study: Study, title: str, columns: Mapping[str, Callable[[RunTable], float | None]]) -> Part:
    """Return a table with a row for each regime and surrogate, of numbers over the runs on all tasks."""
    rows = [
        (regime, surrogate, *(number(of(runs)) for of in columns.values()))
        for regime in study.results.regimes
        for surrogate, runs in study.results.by_surrogate(regime).items()
    ]
    return Part(title, (), ("regime", "surrogate", *columns), tuple(rows))
