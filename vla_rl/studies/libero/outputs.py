"""Results of a LIBERO study as files: CSV tables, figures, videos, and a page in Markdown and HTML."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from vla_rl.evaluation.statistics import wilson_interval
from vla_rl.files import atomic_write_text
from vla_rl.reporting import html
from vla_rl.reporting.report import origin_table
from vla_rl.studies.libero.plots import FIGURES, curve_band, metric_band, write_figures
from vla_rl.studies.libero.results import DRIFT, StudyData, read_results
from vla_rl.studies.libero.runner import read_study
from vla_rl.studies.libero.words import cautions, parts, verdict
from vla_rl.studies.pages import (
    PAGE,
    RESULTS,
    Row,
    WrittenStudy,
    band_rows,
    gain_columns,
    html_sections,
    markdown,
    remove_others,
    rounded,
    write_csv,
)

TITLE = "LIBERO: from demonstrations to a policy that RL changes"
README = "README.md"


def write_study(out: Path) -> WrittenStudy:
    """Aggregate the finished jobs and write everything under `OUT/results/`, and `OUT/report.html`.

    Raises:
        ValueError: the study's own files are broken, or nothing has finished. A broken job is left out and reported.
    """
    plan, _ = read_study(out)
    data = read_results(plan, out)
    folder = out / RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[Row]] = {
        "candidates": [
            {"optimizer_steps": step, "success_rate": rounded(rate), "chosen": step == data.start}
            for step, rate in data.candidates.items()
        ],
        "runs": list(_run_rows(data)),
        "evaluations": list(_evaluation_rows(data)),
        "gains": list(_gain_rows(data)),
        "pairs": list(_pair_rows(data)),
        "controls": list(_control_rows(data)),
        "curves": list(_curve_rows(data)),
        "drift": list(_drift_rows(data)),
    }
    written = [write_csv(folder / f"{name}.csv", rows) for name, rows in tables.items() if rows]
    figures = write_figures(folder, data)
    remove_others(folder, tables=tables, figures=FIGURES, written=written + figures)
    videos = _copy_videos(data, folder)
    pictures = [path for path in figures if path.suffix == ".png"]
    told, warned = parts(data), cautions(data)
    text = markdown(TITLE, cautions=warned, parts=told, figures=pictures, texts=FIGURES) + _videos_in_markdown(videos)
    atomic_write_text(folder / README, text)
    sections = [*html_sections(cautions=warned, parts=told, figures=pictures, texts=FIGURES), *_origin(data)]
    atomic_write_text(out / PAGE, html.page(TITLE, [html.note(f"Study {out.resolve().name}"), *sections]))
    return WrittenStudy((*written, *figures, *videos, folder / README, out / PAGE), tuple(sections))


def _run_rows(data: StudyData) -> Iterable[Row]:
    for result in data.runs:
        yield {
            **asdict(result.run),
            "env_steps": result.env_steps,
            "optimizer_steps": result.records[-1]["optimizer_steps"],
            "episodes": result.records[-1]["episodes"],
            "seconds": round(result.seconds, 1),
            "closing_success": rounded(result.closing("rollout/success_rate")),
            **{name: rounded(result.closing(name)) for name in DRIFT},
        }


def _evaluation_rows(data: StudyData) -> Iterable[Row]:
    for evaluation in data.evaluations.values():
        successes, count = sum(episode.success for episode in evaluation.episodes), len(evaluation.episodes)
        interval = wilson_interval(successes, count)
        yield {
            "policy": evaluation.subject,
            "actions": evaluation.actions,
            "success_rate": rounded(evaluation.success_rate),
            "successes": successes,
            "episodes": count,
            "wilson_low": rounded(interval.low),
            "wilson_high": rounded(interval.high),
            **{f"task_{task}": rounded(rate) for task, rate in evaluation.by_task.items()},
        }


def _gain_rows(data: StudyData) -> Iterable[Row]:
    for gain in data.gains():
        yield {
            **asdict(gain.run),
            "actions": gain.actions,
            **gain_columns(gain.comparison),
            "verdict": verdict(gain),
        }


def _pair_rows(data: StudyData) -> Iterable[Row]:
    for pair in data.pairs():
        result = pair.comparison
        yield {
            "regime": pair.regime,
            "actions": pair.actions,
            "first": pair.first,
            "second": pair.second,
            "seeds": pair.seeds,
            "first_rate": rounded(result.first_rate),
            "second_rate": rounded(result.second_rate),
            "low": None if result.interval is None else rounded(result.interval.low),
            "high": None if result.interval is None else rounded(result.interval.high),
            "mcnemar_mid_p": rounded(result.test.p_mid),
        }


def _control_rows(data: StudyData) -> Iterable[Row]:
    for evaluation in data.evaluations.values():
        for control in evaluation.controls:
            yield {
                "policy": evaluation.subject,
                "actions": evaluation.actions,
                "control": control.name,
                "success_rate": rounded(control.comparison.first_rate),
                "under_control": rounded(control.success_rate),
                "mcnemar_mid_p": rounded(control.comparison.test.p_mid),
            }


def _curve_rows(data: StudyData) -> Iterable[Row]:
    for arm, regime in data.arms():
        yield from band_rows({"arm": arm, "regime": regime}, curve_band(data, arm, regime), clock="env_steps")


def _drift_rows(data: StudyData) -> Iterable[Row]:
    for arm, regime in data.arms():
        for metric in DRIFT:
            place = {"arm": arm, "regime": regime, "metric": metric}
            yield from band_rows(place, metric_band(data, arm, regime, metric), clock="optimizer_steps")


def _copy_videos(data: StudyData, folder: Path) -> list[Path]:
    """Copy the videos of every subject; return the copies."""
    copies = []
    for subject, videos in data.videos.items():
        for video in videos:
            target = folder / "videos" / f"{subject}_{video.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, target)
            copies.append(target)
    return copies


def _videos_in_markdown(videos: Sequence[Path]) -> str:
    if not videos:
        return ""
    intro = "One episode of each task, on its first held-out state, with sampled actions."
    return "\n".join(["", "## Videos", "", intro, "", *(f"* [{it.stem}](videos/{it.name})" for it in videos), ""])


def _origin(data: StudyData) -> list[str]:
    """Return recipe and manifest of one run; nothing before a run has finished."""
    if not data.runs:
        return []
    first = data.runs[0]
    return [
        html.section(
            "Made with",
            html.note(f"Of {first.run.name}:"),
            origin_table(first.manifest),
            html.folded(
                f"recipe of {first.run.name} (the others differ in name, surrogate, learning rate, ring and seed)",
                html.preformatted(first.recipe),
            ),
            *(html.folded(f"manifest of {result.run.name}", html.nested(result.manifest)) for result in data.runs),
        )
    ]
