"""Results of a Meta-World study as files: CSV tables, figures, and a page in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vla_rl.files import atomic_write_json, atomic_write_text, read_json_object
from vla_rl.reporting import html
from vla_rl.reporting.report import origin_table
from vla_rl.studies.metaworld.lag_tails import point_rows
from vla_rl.studies.metaworld.learning_curves import curve_rows
from vla_rl.studies.metaworld.missing import missing_runs
from vla_rl.studies.metaworld.plots import FIGURES, write_figures
from vla_rl.studies.metaworld.results import CLOSING, LAGS, OLD_ESS, TAIL, WHOLE_RUN, RunResult, RunTable, read_results
from vla_rl.studies.metaworld.runner import BASELINES_FILE, read_study
from vla_rl.studies.metaworld.scores import Improvement, Score, improvements, normalized, random_return, scores
from vla_rl.studies.metaworld.solving import env_steps_until_solved, is_solved_at_the_end
from vla_rl.studies.metaworld.study import Study
from vla_rl.studies.metaworld.summary import parts
from vla_rl.studies.metaworld.trajectories import trajectory_rows
from vla_rl.studies.metaworld.words import cautions
from vla_rl.studies.pages import (
    PAGE,
    RESULTS,
    Row,
    WrittenStudy,
    html_sections,
    markdown,
    remove_others,
    rounded,
    write_csv,
)

TITLE = "Meta-World: surrogates on old and new experience"
POINTS = ("learner/kl", "learner/approx_kl", OLD_ESS, "policy_lag/p95", TAIL, *LAGS)


def write_study(out: Path) -> WrittenStudy:
    """Aggregate the finished runs and write everything under `OUT/results/`, and `OUT/report.html`.

    Raises:
        ValueError: the study's own files are broken, or no run can be read. A broken run is left out and reported.
    """
    grid, _ = read_study(out)
    results, broken = read_results(out)
    place = {run: index for index, run in enumerate(grid.runs())}
    results = RunTable(sorted(results, key=lambda result: place.get(result.run, len(place))))
    folder = out / RESULTS
    randoms = _random_returns(out, results.tasks)
    ranking, pairs = scores(results, randoms), improvements(results, randoms)
    tables = {
        "runs": [_run_row(result, randoms) for result in results],
        "scores": [_score_row(score) for score in ranking],
        "improvements": [_improvement_row(entry) for entry in pairs],
        "curves": list(curve_rows(results)),
        "trajectories": list(trajectory_rows(results)),
        "points": list(point_rows(results, POINTS)),
    }
    written = [write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows]
    figures = write_figures(folder, results, ranking, pairs, randoms)
    remove_others(folder, tables=tables, figures=FIGURES, written=written + figures)
    study = Study(
        planned=len(grid.runs()),
        missing=missing_runs(grid, out),
        optimizer_steps=grid.optimizer_steps,
        recipe=grid.recipe,
        results=results,
        broken=broken,
        scores=ranking,
        improvements=pairs,
        random_returns=randoms,
    )
    pictures = [path for path in figures if path.suffix == ".png"]
    sections = study_sections(study, pictures)
    text = markdown(TITLE, cautions=cautions(study), parts=parts(study), figures=pictures, texts=FIGURES)
    atomic_write_text(folder / "summary.md", text)
    atomic_write_text(out / PAGE, html.page(TITLE, [html.note(f"Study {out.resolve().name}"), *sections]))
    return WrittenStudy((*written, *figures, folder / "summary.md", out / PAGE), tuple(sections))


def _random_returns(out: Path, tasks: Sequence[str]) -> Mapping[str, float]:
    """Return the mean return of uniformly random actions per task; measured once per study."""
    path = out / BASELINES_FILE
    known: dict[str, float] = read_json_object(path) if path.exists() else {}
    missing = [task for task in tasks if task not in known]
    if missing:
        known |= {task: random_return(task) for task in missing}
        atomic_write_json(path, known)
    return known


def _run_row(result: RunResult, randoms: Mapping[str, float]) -> Row:
    run, end = result.run, result.records[-1]
    return {
        "task": run.task,
        "surrogate": run.surrogate,
        "regime": run.regime,
        "seed": run.seed,
        "closing_return": round(result.closing_return, 2),
        "normalized_score": round(normalized(result.closing_return, random_return=randoms[run.task]), 5),
        **{name: rounded(result.closing(name)) for name in CLOSING},
        **{f"whole_run/{name}": rounded(result.whole(name)) for name in WHOLE_RUN},
        "closing_lr_share": rounded(result.closing_lr),
        "env_steps_until_solved": env_steps_until_solved(result),
        "solved_at_end": int(is_solved_at_the_end(result)),
        "env_steps": end["env_steps"],
        "optimizer_steps": end["optimizer_steps"],
        "seconds": round(result.seconds, 1),
    }


def _score_row(score: Score) -> Row:
    return {
        "regime": score.regime,
        "surrogate": score.surrogate,
        "iqm": round(score.iqm, 5),
        "low": None if score.interval is None else round(score.interval.low, 5),
        "high": None if score.interval is None else round(score.interval.high, 5),
        "low_by_seed": None if score.interval_by_seed is None else round(score.interval_by_seed.low, 5),
        "high_by_seed": None if score.interval_by_seed is None else round(score.interval_by_seed.high, 5),
        "mean": round(score.mean, 5),
        "seeds": score.seeds,
        "tasks": len(score.tasks),
        "task_names": " ".join(score.tasks),
    }


def _improvement_row(entry: Improvement) -> Row:
    return {
        "regime": entry.regime,
        "first": entry.first,
        "second": entry.second,
        "probability": round(entry.probability, 4),
        "low": None if entry.interval is None else round(entry.interval.low, 4),
        "high": None if entry.interval is None else round(entry.interval.high, 4),
        "low_by_seed": None if entry.interval_by_seed is None else round(entry.interval_by_seed.low, 4),
        "high_by_seed": None if entry.interval_by_seed is None else round(entry.interval_by_seed.high, 4),
        "seeds_first": entry.seeds[0],
        "seeds_second": entry.seeds[1],
        "task_names": " ".join(entry.tasks),
        "pairs": entry.test.pairs,
        "pairs_higher": entry.test.higher,
        "pairs_lower": entry.test.lower,
        "sign_test_p": rounded(entry.test.p),
        "sign_test_p_by_seed": rounded(entry.test.p_by_seed),
        "pairs_solved_earlier": entry.solving.lower,
        "pairs_solved_later": entry.solving.higher,
        "solving_sign_test_p": rounded(entry.solving.p),
        "solving_sign_test_p_by_seed": rounded(entry.solving.p_by_seed),
    }


def study_sections(study: Study, figures: Sequence[Path]) -> list[str]:
    """Return the study as sections of a page: words, figures, tables, and provenance."""
    shown = html_sections(cautions=cautions(study), parts=parts(study), figures=figures, texts=FIGURES)
    return [*shown, _origin(study)]


def _origin(study: Study) -> str:
    """Return recipe and manifest of one run, and what differs in the others."""
    first = study.results[0]
    made_with = {repr([result.manifest.get(key) for key in ("source", "versions")]) for result in study.results}
    alike = "the same sources" if len(made_with) == 1 else f"{len(made_with)} different sets of sources"
    return html.section(
        "Made with",
        html.note(f"All runs were made with {alike} and versions. Of {first.run.name}:"),
        origin_table(first.manifest),
        html.folded(
            f"recipe of {first.run.name} (the others differ in name, task, surrogate, regime and seed)",
            html.preformatted(first.recipe),
        ),
        *(html.folded(f"manifest of {result.run.name}", html.nested(result.manifest)) for result in study.results),
    )
