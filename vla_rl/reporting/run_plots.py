"""Figures of runs and evaluations, drawn on their own Agg canvas: no display, no global state."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from vla_rl.files import atomic_write_bytes
from vla_rl.reporting.panels import CLOCK_LABELS, COLORS, FIGURES, FigureSpec, PanelSpec
from vla_rl.reporting.run_folder import read_run
from vla_rl.reporting.series import Records, series, value_of
from vla_rl.reporting.text import distinct

FIGURES_FOLDER = "figures"
COLUMNS = 3
PANEL_SIZE = (4.1, 2.7)  # inches
DPI = 120
NAME_WIDTH = 50  # characters per line of a task's name
DASHES = ("-", "--", ":", "-.")
INK, FAINT = "#1f2933", "#d5dbe1"


def draw(spec: FigureSpec, runs: Mapping[str, Records]) -> Figure | None:
    """Draw one figure of one run or several.

    One run: a colour per metric. Several runs: a colour per run, a dash pattern per metric, also another one for runs
    whose colour comes again.

    Args:
        spec: what to draw.
        runs: log points by the run's name.

    Returns:
        The figure, without panels that have no data; None if no panel has any.
    """
    panels = [panel for panel in spec.panels if _has_data(panel, runs)]
    if not panels:
        return None
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(PANEL_SIZE[0] * COLUMNS, PANEL_SIZE[1] * rows), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(grid[index // COLUMNS, index % COLUMNS])
        _draw_panel(axes, panel, runs, over=spec.over)
    if len(runs) > 1:
        _name_runs(figure, list(runs))
    return figure


def _has_data(panel: PanelSpec, runs: Mapping[str, Records]) -> bool:
    return any(
        value_of(record, name) is not None for records in runs.values() for record in records for name in panel.metrics
    )


def _draw_panel(axes: Axes, panel: PanelSpec, runs: Mapping[str, Records], *, over: str) -> None:
    unnamed = dict(zip(panel.metrics, panel.labels, strict=True))
    for run_index, records in enumerate(runs.values()):
        for metric_index, name in enumerate(panel.metrics):
            clocks, values = series(records, name, over=over)
            color = COLORS[(run_index if len(runs) > 1 else metric_index) % len(COLORS)]
            dash = _dash(run_index, metric_index) if len(runs) > 1 else "-"
            # A line through a single point is invisible.
            marker = "o" if len(clocks) == 1 else ""
            if clocks:
                label = unnamed.pop(name, None)  # once in the legend, whichever runs have it
                axes.plot(clocks, values, color=color, linestyle=dash, marker=marker, linewidth=1.6, label=label)
    _dress(axes, panel, over=over)


def _dash(run_index: int, metric_index: int = 0) -> str:
    """Return the dash pattern of a metric of one of several runs: another one where the colours begin anew."""
    return DASHES[(metric_index + run_index // len(COLORS)) % len(DASHES)]


def _dress(axes: Axes, panel: PanelSpec, *, over: str) -> None:
    axes.set_title(panel.heading, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(CLOCK_LABELS[over], fontsize=8, color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.grid(visible=True, color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    if panel.shares:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if panel.shares or panel.from_zero:
        top = axes.get_ylim()[1]
        # Large shares are shown on the whole range; small ones would be invisible on it.
        axes.set_ylim(0.0, 1.03 if panel.shares and 0.5 < top < 1.2 else top)
    if len(panel.metrics) > 1:
        axes.legend(fontsize=7, frameon=False, loc="best")


def _name_runs(figure: Figure, names: Sequence[str]) -> None:
    handles = [Line2D([], [], color=COLORS[i % len(COLORS)], linestyle=_dash(i)) for i in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=8, frameon=False)


def draw_success_per_task(tasks: Sequence[Mapping[str, Any]], *, confidence: float) -> Figure:
    """Draw success rate and interval of every task of one suite.

    Args:
        tasks: entries of `tasks` in a `results.json`, of one suite; older files have no `language`.
        confidence: coverage of the intervals, for the label.
    """
    figure = Figure(figsize=(PANEL_SIZE[0] * 2, 0.9 + 0.3 * len(tasks)), layout="constrained")
    axes = figure.add_subplot()
    for place, task in enumerate(tasks):
        low, high = task["wilson"]["low"], task["wilson"]["high"]
        axes.plot([low, high], [place, place], color=COLORS[0], linewidth=2, alpha=0.45, solid_capstyle="round")
        axes.plot(task["success_rate"], place, "o", color=COLORS[0], markersize=6)
    _dress(axes, PanelSpec("", ()), over="env_steps")
    axes.set_yticks(range(len(tasks)), [_name_task(task) for task in tasks], fontsize=7)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"success rate, {100 * confidence:.0f} % Wilson interval", fontsize=8, color=INK)
    return figure


def _name_task(task: Mapping[str, Any]) -> str:
    """Return `3: instruction of the task`, in two lines if it is long."""
    words = f"{task['task_id']}: {task['language']}" if task.get("language") else f"task {task['task_id']}"
    return textwrap.fill(words, NAME_WIDTH, max_lines=2, placeholder=" …")


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def write_figures(run_dirs: Sequence[Path], out: Path) -> list[Path]:
    """Draw the metrics of one run, or of several together as on their page.

    Args:
        run_dirs: folders of runs, each with a `metrics.jsonl`. Runs of one name are numbered.
        out: folder of the figures, created if there are any.

    Returns:
        The files that were written; figures without data are left out.

    Raises:
        ValueError: a folder is not a run, or one of its files is broken.
        OSError: a figure cannot be written.
    """
    found = [read_run(folder) for folder in run_dirs]
    runs = dict(zip(distinct([run.name for run in found]), (run.records for run in found), strict=True))
    written = []
    for spec in FIGURES:
        figure = draw(spec, runs)
        if figure is not None:
            path = out / f"{spec.name}.png"
            atomic_write_bytes(path, png(figure))
            written.append(path)
    return written
