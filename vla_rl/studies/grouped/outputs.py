"""Results of a study of groups as files: JSON, CSV tables, figures, and a page in Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from vla_rl.files import atomic_write_json, atomic_write_text
from vla_rl.reporting import html
from vla_rl.studies.grouped.plots import FIGURES, write_figures
from vla_rl.studies.grouped.results import Gain, GroupResult, comparisons, read_gains, read_results, summaries
from vla_rl.studies.grouped.runner import read_study
from vla_rl.studies.grouped.words import GroupStudy, cautions, parts
from vla_rl.studies.pages import (
    PAGE,
    RESULTS,
    Row,
    WrittenStudy,
    gain_columns,
    html_sections,
    markdown,
    remove_others,
    rounded,
    write_csv,
)

TITLE = "Critic or groups: episodes until a given success"
SUMMARY = "summary.md"
DATA = "groups.json"
CURVE_POINTS = 100  # of a run, in the tables; the figures have all


def write_study(out: Path) -> WrittenStudy:
    """Aggregate the finished runs and write everything under `OUT/results/`, and `OUT/report.html`.

    Raises:
        ValueError: the study's own files are broken, or no run can be read. A broken run is left out and reported.
    """
    plan, base = read_study(out)
    results, broken = read_results(plan, out)
    gains, unread = read_gains(results, out)
    study = GroupStudy(plan, results, broken, summaries(plan, results), comparisons(plan, results), gains, unread)
    folder = out / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    rows = [_run_row(result) for result in results]
    data = {
        "plan": plan.settings(),
        "recipe": base,
        "methods": [asdict(summary) for summary in study.summaries],
        "faster": [asdict(pair) for pair in study.comparisons],
        "runs": rows,
    }
    atomic_write_json(folder / DATA, data)
    tables: dict[str, list[Row]] = {
        "runs": rows,
        "curves": list(_curve_rows(results)),
        "gains": [*map(_gain_row, gains)],
    }
    written = [folder / DATA, *(write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows)]
    figures = write_figures(folder, plan, results, study.summaries)
    remove_others(folder, tables=tables, figures=FIGURES, written=written + figures)
    pictures = [path for path in figures if path.suffix == ".png"]
    told, warned = parts(study), cautions(study)
    text = markdown(TITLE, cautions=warned, parts=told, figures=pictures, texts=FIGURES)
    atomic_write_text(folder / SUMMARY, text)
    sections = html_sections(cautions=warned, parts=told, figures=pictures, texts=FIGURES)
    atomic_write_text(out / PAGE, html.page(TITLE, [html.note(f"Study {out.resolve().name}"), *sections]))
    return WrittenStudy((*written, *figures, folder / SUMMARY, out / PAGE), tuple(sections))


def _run_row(result: GroupResult) -> Row:
    return {
        **asdict(result.run),
        "episodes_until": result.episodes_until,
        "reached": result.reached is not None,
        "closing_success": rounded(result.closing_success),
        "mixed_at_first": rounded(result.mixed_at_first),
        "episodes_per_useful": rounded(result.episodes_per_useful),
        "optimizer_steps": result.optimizer_steps,
        "episodes": result.records[-1]["episodes"],
        "seconds": round(result.seconds, 1),
        "ended_early": result.ended_early,
    }


def _gain_row(gain: Gain) -> Row:
    return {**asdict(gain.run), **gain_columns(gain.comparison)}


def _curve_rows(results: Sequence[GroupResult]) -> Iterable[Row]:
    for result in results:
        points = list(zip(*result.curve(), strict=True))
        for episodes, success in points[:: max(1, len(points) // CURVE_POINTS)]:
            yield {**asdict(result.run), "episodes": int(episodes), "success": rounded(success)}
