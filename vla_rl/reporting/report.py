"""`report.html`: one file that opens from disk, without network access or scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from vla_rl.files import atomic_write_text
from vla_rl.reporting.catalogue import CATALOGUE
from vla_rl.reporting.html import bullets, folded, image, nested, note, page, preformatted, section, table, warning_box
from vla_rl.reporting.panels import FIGURES
from vla_rl.reporting.run_folder import Evaluation, WrittenRun, read_run
from vla_rl.reporting.run_plots import draw, draw_success_per_task, png
from vla_rl.reporting.run_summary import run_sentences, warnings
from vla_rl.reporting.series import Records, closing_mean
from vla_rl.reporting.text import ABSENT, distinct, duration, number, percent, size


class Column(NamedTuple):
    """One column of the table that compares runs."""

    metric: str
    heading: str
    is_share: bool = False
    by_time: bool = False


COLUMNS = (
    Column("rollout/success_rate", "success", is_share=True),
    Column("rollout/return", "return"),
    Column("policy_lag/mean", "lag, mean"),
    Column("policy_lag/p95", "lag, P95"),
    Column("policy_lag/old_fraction", "old", is_share=True),
    Column("ratio/abs_log_p95", "|log ρ|, P95"),
    Column("utilization/dead", "dead", is_share=True),
    Column("utilization/near_zero", "near zero", is_share=True),
    Column("perf/env_steps_per_s", "env steps/s", by_time=True),
    Column("perf/learner_wait_fraction", "learner waits", is_share=True, by_time=True),
)


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    comparisons: Sequence[str] = (),
    studies: Sequence[tuple[str, Sequence[str]]] = (),
) -> None:
    """Write one page about runs and studies.

    Args:
        run_dirs: folders of runs, each with a `metrics.jsonl`.
        out: the HTML file.
        comparisons: sentences about pairs of runs, shown beside the comparison table.
        studies: name and HTML sections of each study. Studies and runs of one name are numbered.

    Raises:
        ValueError: nothing is given, a folder is not a run, or a file of a run is broken.
    """
    if not run_dirs and not studies:
        raise ValueError("a report needs the folder of at least one run")
    found = [read_run(folder) for folder in run_dirs]
    names = distinct([*(name for name, _ in studies), *(run.name for run in found)])
    runs = dict(zip(names[len(studies) :], found, strict=True))
    parts: list[str] = []
    for name, (_, sections) in zip(names, studies, strict=False):
        parts += [section(f"Study {name}") if len(names) > 1 else "", *sections]
    if runs:
        details = [_details(name, run) for name, run in runs.items()]
        parts += [*_overview(runs, comparisons), *_curves(runs), *details, _glossary(runs)]
    atomic_write_text(out, page(", ".join(names), parts))


def _overview(runs: Mapping[str, WrittenRun], comparisons: Sequence[str]) -> list[str]:
    parts = []
    for name, run in runs.items():
        heading = name if len(runs) > 1 else ""
        parts.append(section(heading, bullets(run_sentences(run)), warning_box(warnings(run))))
    if len(runs) > 1:
        parts.append(section("Side by side", bullets(comparisons), _side_by_side(runs)))
    return parts


def _side_by_side(runs: Mapping[str, WrittenRun]) -> str:
    header = ["run", "optimizer steps", "env steps", "time", *(column.heading for column in COLUMNS)]
    rows = [[name, *_extent(run.records), *_closing_values(run.records)] for name, run in runs.items()]
    return table(header, rows) + note("Means over the last 20 % of each run's env steps.")


def _extent(records: Records) -> list[str]:
    if not records:
        return [ABSENT] * 3
    end = records[-1]
    return [number(end["optimizer_steps"]), number(end["env_steps"]), duration(end["seconds"])]


def _closing_values(records: Records) -> list[str]:
    means = [closing_mean(records, column.metric, by_time=column.by_time) for column in COLUMNS]
    return [(percent if column.is_share else number)(mean) for column, mean in zip(COLUMNS, means, strict=True)]


def _curves(runs: Mapping[str, WrittenRun]) -> list[str]:
    records = {name: run.records for name, run in runs.items()}
    figures = [(spec.title, draw(spec, records)) for spec in FIGURES]
    return [section(title, image(png(figure), alt=title)) for title, figure in figures if figure is not None]


def _details(name: str, run: WrittenRun) -> str:
    parts = [_evaluation(evaluation) for evaluation in run.evaluations]
    if run.manifest is not None:
        parts.append(f"<h3>Made with</h3>{origin_table(run.manifest)}")
        rest = {key: value for key, value in run.manifest.items() if key != "recipe" or run.recipe is None}
        parts.append(folded("manifest", nested(rest)))
    if run.recipe is not None:
        parts.append(folded("recipe", preformatted(run.recipe)))
    return section(f"{name}: evaluations, origin", *parts) if parts else ""


def _evaluation(evaluation: Evaluation) -> str:
    results, parts = evaluation.results, [f"<h3>Evaluation {escape(evaluation.name)}</h3>"]
    header = ["suite", "tasks", "episodes", "success", "Wilson interval", "bootstrap within tasks", "mean env steps"]
    rows = [
        [
            suite["suite"],
            number(suite["tasks"]),
            number(suite["episodes"]),
            percent(suite["success_rate"], digits=1),
            _interval(suite["wilson"]),
            _interval(suite["bootstrap"]),
            number(suite["mean_env_steps"]),
        ]
        for suite in results["suites"]
    ]
    parts.append(table(header, rows))
    for suite in results["suites"]:
        tasks = [task for task in results["tasks"] if task["suite"] == suite["suite"]]
        figure = draw_success_per_task(tasks, confidence=results["confidence"])
        parts.append(image(png(figure), alt=f"success per task of {suite['suite']}", css="narrow"))
    return "".join(parts)


def _interval(interval: Mapping[str, float] | None) -> str:
    """Format a bootstrap interval; a dash if the bootstrap found no spread."""
    if interval is None:
        return "–"
    return f"{percent(interval['low'], digits=1)} – {percent(interval['high'], digits=1)}"


def _glossary(runs: Mapping[str, WrittenRun]) -> str:
    """Explain each metric that the runs have."""
    written = {name for run in runs.values() for record in run.records for name in record}
    rows = [[metric.name, metric.unit, metric.meaning] for metric in CATALOGUE.values() if metric.name in written]
    return section("What the numbers mean", folded("metrics", table(["metric", "unit", "meaning"], rows)))


def origin_table(manifest: Mapping[str, Any]) -> str:
    """Return a table of a run's provenance, from its manifest."""
    hardware, source = manifest.get("hardware") or {}, manifest.get("source") or {}
    devices = hardware.get("accelerators")
    # Null means unknown, an empty list that there are none.
    accelerators = ABSENT if devices is None else ", ".join(device["name"] for device in devices) or "none"
    memory = hardware.get("memory_bytes")
    versions = manifest.get("versions") or {}
    rows = [
        ["started", manifest.get("started", ABSENT)],
        ["command", " ".join(manifest.get("command") or ())],
        ["source", f"{source.get('commit') or 'installed package'}{' + changes' if source.get('dirty') else ''}"],
        ["processor", f"{hardware.get('cpu', ABSENT)}, {hardware.get('cores_usable', ABSENT)} cores"],
        ["memory", ABSENT if memory is None else size(memory)],
        ["accelerators", accelerators],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)],
        ["seeds", ", ".join(f"{name} {seed}" for name, seed in (manifest.get("seeds") or {}).items())],
    ]
    return table(None, [[str(cell) for cell in row] for row in rows])
