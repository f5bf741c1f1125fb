"""The results of a Meta-World study as files: CSV tables, figures, and a page in Markdown and HTML."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vla_rl.reporting.files import atomic_write_json, atomic_write_text
from vla_rl.reporting.report_style import STYLE
from vla_rl.studies.metaworld_baseline import random_return
from vla_rl.studies.metaworld_plots import TITLES, write_figures
from vla_rl.studies.metaworld_results import (
    CLOSING,
    MAX_RETURN,
    STALENESS,
    UTILIZATION,
    Improvement,
    RunResult,
    Score,
    improvements,
    labels,
    metric_band,
    normalized,
    read_results,
    return_band,
    scores,
    select,
)
from vla_rl.studies.metaworld_runner import STUDY_FILE

RESULTS = "results"
BASELINES_FILE = "random_returns.json"
PAGE = "report.html"
ENOUGH_SEEDS = 5

Row = dict[str, Any]


def write_study(out: Path) -> list[Path]:
    """Aggregate what has finished so far and write everything under `OUT/results/`, and `OUT/report.html`.

    Raises:
        ValueError: no run has finished, or a file is broken.
    """
    results = read_results(out)
    folder = out / RESULTS
    randoms = _random_returns(out, labels(results, lambda run: run.task))
    ranking, pairs = scores(results, randoms), improvements(results, randoms)
    tables = {
        "runs": [_run_row(result, randoms) for result in results],
        "scores": [_score_row(score) for score in ranking],
        "improvements": [_improvement_row(entry) for entry in pairs],
        "curves": list(_curve_rows(results)),
        "trajectories": list(_trajectory_rows(results)),
    }
    written = [_write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows]
    figures = write_figures(folder, results, ranking, pairs)
    summary = _markdown(out, results, ranking, pairs, randoms)
    atomic_write_text(folder / "summary.md", summary)
    atomic_write_text(out / PAGE, _page(summary, [path for path in figures if path.suffix == ".png"]))
    return [*written, *figures, folder / "summary.md", out / PAGE]


def _random_returns(out: Path, tasks: Sequence[str]) -> Mapping[str, float]:
    """Return of uniformly random actions per task; measured once per study."""
    path = out / BASELINES_FILE
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
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
        "env_steps": end["env_steps"],
        "optimizer_steps": end["optimizer_steps"],
        "seconds": round(result.seconds, 1),
    }


def _score_row(score: Score) -> Row:
    return {
        "regime": score.regime,
        "surrogate": score.surrogate,
        "iqm": round(score.iqm, 5),
        "low": round(score.interval.low, 5),
        "high": round(score.interval.high, 5),
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
        "low": round(entry.interval.low, 4),
        "high": round(entry.interval.high, 4),
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
                    "low": round(float(band.low[place]), 2),
                    "high": round(float(band.high[place]), 2),
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


def _cells(results: Sequence[RunResult], *, by_task: bool) -> Iterable[tuple[str, str, str]]:
    tasks = labels(results, lambda run: run.task) if by_task else [""]
    for task in tasks:
        for regime in labels(results, lambda run: run.regime):
            for surrogate in labels(results, lambda run: run.surrogate):
                yield task, regime, surrogate


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _write_csv(path: Path, rows: Sequence[Row]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())
    return path


def _markdown(
    out: Path,
    results: Sequence[RunResult],
    ranking: Sequence[Score],
    pairs: Sequence[Improvement],
    randoms: Mapping[str, float],
) -> str:
    grid = json.loads((out / STUDY_FILE).read_text(encoding="utf-8"))
    planned = len(grid["tasks"]) * len(grid["surrogates"]) * len(grid["regimes"]) * grid["seeds"]
    state = "complete" if len(results) == planned else f"PARTIAL: {planned - len(results)} runs are missing"
    lines = [
        "# Meta-World: surrogates on old and new experience",
        "",
        f"{len(results)} of {planned} runs ({state}), {grid['optimizer_steps']:,} optimizer steps each, recipe "
        f"`{grid['recipe']}`. Closing values are means over the last 20 % of a run's env steps; intervals are 95 % "
        "bootstrap intervals over seeds within each task.",
        "",
        f"Normalised score: (return − random) / ({MAX_RETURN:.0f} − random). Return of random actions: "
        + ", ".join(f"{task} {randoms[task]:.0f}" for task in labels(results, lambda run: run.task))
        + ". Training episodes with sampled actions, no benchmark score.",
        "",
        *_caution(ranking),
        "## Scores",
        "",
        *_table(
            ["regime", "surrogate", "IQM", "95 % interval", "mean", "seeds × tasks"],
            [
                [
                    score.regime, score.surrogate, f"{score.iqm:.3f}",
                    f"{score.interval.low:.3f} to {score.interval.high:.3f}", f"{score.mean:.3f}",
                    f"{score.seeds} × {score.tasks}",
                ]
                for score in ranking
            ],
        ),
        "",
        "## Probability of improvement",
        "",
        *_table(
            ["regime", "first", "second", "P(first > second)", "95 % interval"],
            [
                [
                    entry.regime, entry.first, entry.second, f"{entry.probability:.2f}",
                    f"{entry.interval.low:.2f} to {entry.interval.high:.2f}",
                ]
                for entry in pairs
            ],
        ),
        "",
        "## Closing return of every run",
        "",
        *_returns_table(results),
        "",
        "## Staleness and use of the samples (closing means over runs)",
        "",
        *_closing_table(results),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _caution(ranking: Sequence[Score]) -> list[str]:
    seeds = min((score.seeds for score in ranking), default=0)
    if seeds >= ENOUGH_SEEDS:
        return []
    return [f"**{seeds} seed(s): intervals over fewer than {ENOUGH_SEEDS} say nothing. Read the single runs.**", ""]


def _returns_table(results: Sequence[RunResult]) -> list[str]:
    rows = []
    for task, regime, surrogate in _cells(results, by_task=True):
        chosen = select(results, task=task, regime=regime, surrogate=surrogate)
        if chosen:
            by_seed = sorted(chosen, key=lambda result: result.run.seed)
            rows.append([task, regime, surrogate, ", ".join(f"{result.closing_return:.0f}" for result in by_seed)])
    return _table(["task", "regime", "surrogate", "return by seed"], rows)


def _closing_table(results: Sequence[RunResult]) -> list[str]:
    metrics = (*STALENESS, "learner/kl", *UTILIZATION)
    rows = []
    for _, regime, surrogate in _cells(results, by_task=False):
        chosen = select(results, regime=regime, surrogate=surrogate)
        values = [[value for result in chosen if (value := result.closing(name)) is not None] for name in metrics]
        if chosen:
            rows.append([regime, surrogate, *(f"{sum(v) / len(v):.3g}" if v else "–" for v in values)])
    return _table(["regime", "surrogate", *(TITLES[name] for name in metrics)], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _page(markdown: str, figures: Sequence[Path]) -> str:
    """The summary and the figures as one file that opens from disk."""
    body: list[str] = []
    table: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        if table:
            body.append(_html_table(table))
            table = []
        level = len(line) - len(line.lstrip("#"))
        if level:
            body.append(f"<h{level}>{escape(line.lstrip('# '))}</h{level}>")
        elif line:
            body.append(f"<p>{escape(line)}</p>")
    body += [_figure(path) for path in figures]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Meta-World study</title>'
        f"<style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _html_table(lines: Sequence[str]) -> str:
    rows = [[escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines if "---" not in line]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    rest = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f'<div class="scroll"><table class="numbers"><tr>{head}</tr>{rest}</table></div>'


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = path.stem.replace("_", " ")
    return f'<h2>{escape(name)}</h2><img class="wide" alt="{escape(name)}" src="data:image/png;base64,{data}">'
