"""Results of a Meta-World study as files: CSV tables, figures, and a page in Markdown and HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.reporting import html
from vla_rl.reporting.files import atomic_write_json, atomic_write_text, read_json_object
from vla_rl.reporting.report import origin_table
from vla_rl.reporting.series import value_of
from vla_rl.studies.metaworld.bands import metric_band, return_band
from vla_rl.studies.metaworld.plots import FIGURES, write_figures
from vla_rl.studies.metaworld.results import (
    CLOSING,
    STALENESS,
    UTILIZATION,
    WHOLE_RUN,
    RunResult,
    labels,
    read_results,
    select,
)
from vla_rl.studies.metaworld.runner import read_study
from vla_rl.studies.metaworld.scores import (
    Improvement,
    Score,
    improvements,
    normalized,
    random_return,
    scores,
)
from vla_rl.studies.metaworld.summary import parts
from vla_rl.studies.metaworld.words import Study, cautions

TITLE = "Meta-World: surrogates on old and new experience"
RESULTS = "results"
POINTS = ("learner/kl", "learner/approx_kl", "utilization/ess_old", "policy_lag/p95", "ratio/abs_log_p95")
TABLES = ("runs", "scores", "improvements", "curves", "trajectories", "points")
BASELINES_FILE = "random_returns.json"
PAGE = "report.html"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class WrittenStudy:
    """Files and page sections that `write_study` produced."""

    files: tuple[Path, ...]
    sections: tuple[str, ...]  # HTML, for a page about several things


def write_study(out: Path) -> WrittenStudy:
    """Aggregate the finished runs and write everything under `OUT/results/`, and `OUT/report.html`.

    Raises:
        ValueError: the study's own files are broken, or no run can be read. A broken run is left out and reported.
    """
    grid, _ = read_study(out)
    results, broken = read_results(out)
    place = {run: index for index, run in enumerate(grid.runs())}
    results.sort(key=lambda result: place.get(result.run, len(place)))
    folder = out / RESULTS
    randoms = _random_returns(out, labels(results, lambda run: run.task))
    ranking, pairs = scores(results, randoms), improvements(results, randoms)
    tables = {
        "runs": [_run_row(result, randoms) for result in results],
        "scores": [_score_row(score) for score in ranking],
        "improvements": [_improvement_row(entry) for entry in pairs],
        "curves": list(_curve_rows(results)),
        "trajectories": list(_trajectory_rows(results)),
        "points": list(_point_rows(results)),
    }
    written = [_write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows]
    figures = write_figures(folder, results, ranking, pairs, randoms)
    _remove_others(folder, written + figures)
    study = Study(
        planned=len(grid.runs()),
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
    atomic_write_text(folder / "summary.md", _markdown(study, pictures))
    atomic_write_text(out / PAGE, html.page(TITLE, [html.note(f"Study {out.resolve().name}"), *sections]))
    return WrittenStudy((*written, *figures, folder / "summary.md", out / PAGE), tuple(sections))


def _remove_others(folder: Path, written: Sequence[Path]) -> None:
    """Remove tables and figures of an earlier call that this one has no data for: they would contradict the page."""
    names = {f"{name}.csv" for name in TABLES} | {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    for path in sorted(folder.iterdir()):
        if path.name in names and path not in written:
            path.unlink()


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
        **{name: _rounded(result.closing(name)) for name in CLOSING},
        **{f"whole_run/{name}": _rounded(result.whole(name)) for name in WHOLE_RUN},
        "closing_lr_share": _rounded(result.closing_lr),
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
        "mean": round(score.mean, 5),
        "seeds": score.seeds,
        "tasks": score.tasks,
    }


def _improvement_row(entry: Improvement) -> Row:
    return {
        "regime": entry.regime,
        "first": entry.first,
        "second": entry.second,
        "probability": round(entry.probability, 4),
        "low": None if entry.interval is None else round(entry.interval.low, 4),
        "high": None if entry.interval is None else round(entry.interval.high, 4),
        "pairs_higher": entry.higher,
        "pairs_lower": entry.lower,
        "sign_test_p": _rounded(entry.sign_p),
        "sign_test_p_by_seed": _rounded(entry.sign_p_by_seed),
    }


def _curve_rows(results: Sequence[RunResult]) -> Iterable[Row]:
    for task, regime, surrogate in _cells(results, by_task=True):
        chosen = select(results, task=task, regime=regime, surrogate=surrogate)
        if chosen:
            band = return_band(chosen)
            for place in range(len(band.clock)):
                yield {
                    "task": task,
                    "regime": regime,
                    "surrogate": surrogate,
                    "env_steps": round(float(band.clock[place])),
                    "mean": round(float(band.mean[place]), 2),
                    "low": _rounded(float(band.low[place])),
                    "high": _rounded(float(band.high[place])),
                    "seeds": band.runs,
                }


def _trajectory_rows(results: Sequence[RunResult]) -> Iterable[Row]:
    for _, regime, surrogate in _cells(results, by_task=False):
        for metric in (*STALENESS, *UTILIZATION):
            band = metric_band(select(results, regime=regime, surrogate=surrogate), metric)
            for place in range(len(band.clock) if band is not None else 0):
                assert band is not None
                yield {
                    "regime": regime,
                    "surrogate": surrogate,
                    "metric": metric,
                    "optimizer_steps": round(float(band.clock[place])),
                    "mean": _rounded(float(band.mean[place])),
                    "low": _rounded(float(band.low[place])),
                    "high": _rounded(float(band.high[place])),
                    "runs": band.runs,
                }


def _point_rows(results: Sequence[RunResult]) -> Iterable[Row]:
    for result in results:
        for record in result.second_half:
            yield {
                "task": result.run.task,
                "regime": result.run.regime,
                "surrogate": result.run.surrogate,
                "seed": result.run.seed,
                "optimizer_steps": record["optimizer_steps"],
                **{name: _rounded(value_of(record, name)) for name in POINTS},
            }


def _cells(results: Sequence[RunResult], *, by_task: bool) -> Iterable[tuple[str, str, str]]:
    tasks = labels(results, lambda run: run.task) if by_task else [""]
    for task in tasks:
        for regime in labels(results, lambda run: run.regime):
            for surrogate in labels(results, lambda run: run.surrogate):
                yield task, regime, surrogate


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(f"{value:.6g}")


def _write_csv(path: Path, rows: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())
    return path


def _markdown(study: Study, figures: Sequence[Path]) -> str:
    """Return the study as Markdown, with its figures."""
    lines = [f"# {TITLE}", ""]
    lines += [f"**{sentence}**\n" for sentence in cautions(study)]
    for part in parts(study):
        lines += [f"## {part.title}", "", *(f"* {sentence}" for sentence in part.sentences)]
        lines += [""] if part.sentences else []
        if part.header:
            table = (part.header, ["---"] * len(part.header), *part.rows)
            lines += [*(f"| {' | '.join(cells)} |" for cells in table), ""]
    for path in figures:
        lines += [
            f"## {FIGURES[path.stem].title}",
            "",
            FIGURES[path.stem].caption,
            "",
            f"![{path.stem}]({path.name})",
            "",
        ]
    return "\n".join(lines)


def study_sections(study: Study, figures: Sequence[Path]) -> list[str]:
    """Return the study as sections of a page: words, tables, figures, and provenance."""
    words, *tables = parts(study)
    shown = [html.section(words.title, html.warning_box(cautions(study)), html.bullets(words.sentences))]
    for path in figures:
        figure = FIGURES[path.stem]
        shown.append(
            html.section(figure.title, html.note(figure.caption), html.image(path.read_bytes(), alt=figure.title))
        )
    shown += [
        html.section(part.title, *map(html.note, part.sentences), html.table(part.header, part.rows)) for part in tables
    ]
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
