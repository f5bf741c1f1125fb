"""The paper's numbers for Meta-World (arXiv 2603.03955) beside a study's, where both measure the same.

Table 1 of the paper has lags and drift. Its interquartile means are known from a retelling alone. Learning curves,
utilisation and the ablation of sigma are figures without numbers.
"""

from __future__ import annotations

from statistics import fmean, stdev

from vla_rl.reporting.text import number
from vla_rl.studies.metaworld.results import TITLES, RunTable
from vla_rl.studies.metaworld.scores import task_sets
from vla_rl.studies.metaworld.study import Study
from vla_rl.studies.pages import Part, between
from vla_rl.studies.surrogate_labels import StudySurrogate

GIPO = "gipo"  # label of sigma 1 with the factor 1, the paper's "GIPO (1.0, 1.0)"
IQMS = {GIPO: "0.730", "ppo": "0.180"}
TABLE_1 = {
    ("fresh", "policy_lag/old_fraction"): "0.000 ± 0.000",
    ("fresh", "policy_lag/old_p95"): "0.00 ± 0.00",
    ("fresh", "ratio/abs_log_p95"): "0.095 ± 0.006",
    ("stale", "policy_lag/old_fraction"): "0.884 ± 0.003",
    ("stale", "ratio/abs_log_p95"): "1.46 ± 0.75",
}


def paper_part(study: Study) -> Part | None:
    """Return the numbers of the paper beside those of a study; None where there is nothing to compare."""
    rows = (*_iqm_rows(study), *_rank_rows(study), *_table_rows(study))
    if not rows:
        return None
    return Part(
        "Beside the paper",
        (
            f"The paper's runs have 100,000 updates, these {study.optimizer_steps:,}. ± is the deviation over tasks. "
            "The paper does not say under which surrogate it measured drift. docs/metaworld.md says why they differ.",
        ),
        ("regime", "what", "surrogate", "paper", "here"),
        rows,
    )


def _iqm_rows(study: Study) -> list[tuple[str, ...]]:
    sets = task_sets(study.scores, "stale")
    return [
        (
            "stale", "IQM of the normalised score", score.surrogate, IQMS[score.surrogate],
            f"{score.iqm:.3f} ({between(score.interval)}" + (f"; {len(tasks)} tasks)" if len(sets) > 1 else ")"),
        )
        for tasks in sets
        for score in study.scores
        if (score.regime, score.tasks) == ("stale", tasks) and score.surrogate in IQMS
    ]  # fmt: skip


def _rank_rows(study: Study) -> list[tuple[str, ...]]:
    """Compare how many settings of GIPO are above all other surrogates."""
    rows: list[tuple[str, ...]] = []
    sets = task_sets(study.scores, "stale")
    for tasks in sets:
        iqms: dict[bool, list[float]] = {True: [], False: []}  # of GIPO, of the others
        for score in study.scores:
            if (score.regime, score.tasks) == ("stale", tasks):
                iqms[StudySurrogate(score.surrogate).sigma is not None].append(score.iqm)
        if len(iqms[True]) > 1 and iqms[False]:
            above = sum(iqm > max(iqms[False]) for iqm in iqms[True])
            here = f"{above} of {len(iqms[True])}" + (f" ({len(tasks)} tasks)" if len(sets) > 1 else "")
            rows.append(("stale", "settings above every other surrogate", "GIPO", "6 of 6", here))
    return rows


def _table_rows(study: Study) -> list[tuple[str, ...]]:
    return [
        (regime, TITLES[metric], surrogate, paper, here)
        for (regime, metric), paper in TABLE_1.items()
        for surrogate, runs in study.results.by_surrogate(regime).items()
        if surrogate in IQMS and (here := _over_tasks(runs, metric)) is not None
    ]


def _over_tasks(results: RunTable, metric: str) -> str | None:
    """Return the mean and the sample deviation over tasks of a metric's closing means, each over seeds."""
    means = (results.where(task=task).mean(metric) for task in results.tasks)
    of_tasks = [mean for mean in means if mean is not None]
    if not of_tasks:
        return None
    return f"{number(fmean(of_tasks))} ± {number(stdev(of_tasks))}" if len(of_tasks) > 1 else number(of_tasks[0])
