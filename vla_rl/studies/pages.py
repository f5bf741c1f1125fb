"""Pages of a study: parts of words and tables in Markdown and HTML, and tables as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.evaluation.pairs import Comparison
from vla_rl.evaluation.statistics import Interval
from vla_rl.files import atomic_write_text
from vla_rl.reporting import html
from vla_rl.studies.bands import Band
from vla_rl.studies.figures import FigureText

PAGE = "report.html"
RESULTS = "results"

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A heading with sentences and perhaps a table."""

    title: str
    sentences: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenStudy:
    """Files and page sections that a study was written to."""

    files: tuple[Path, ...]
    sections: tuple[str, ...]  # HTML, for a page about several things


def between(interval: Interval | None, *, digits: int = 3) -> str:
    """Return the ends of an interval, in words."""
    return "no interval" if interval is None else f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def gain_columns(comparison: Comparison) -> Row:
    """Return the columns of a comparison of a policy after training, the first, with the one before."""
    interval = comparison.interval
    return {
        "before": rounded(comparison.second_rate),
        "after": rounded(comparison.first_rate),
        "difference": rounded(comparison.difference),
        "low": None if interval is None else rounded(interval.low),
        "high": None if interval is None else rounded(interval.high),
        "pairs": comparison.pairs,
        "only_after": comparison.test.only_first,
        "only_before": comparison.test.only_second,
        "mcnemar_mid_p": rounded(comparison.test.p_mid),
    }


def band_rows(place: Row, band: Band | None, *, clock: str) -> Iterable[Row]:
    """Yield a band along a clock, point by point, after the columns of its place; nothing without a band."""
    for point in range(len(band.clock) if band is not None else 0):
        assert band is not None
        yield {
            **place,
            clock: round(float(band.clock[point])),
            "mean": rounded(float(band.mean[point])),
            "low": rounded(float(band.low[point])),
            "high": rounded(float(band.high[point])),
            "runs": band.runs,
        }


def rounded(value: float | None) -> float | None:
    """Round to six significant digits for a table; NaN is no value."""
    return None if value is None or math.isnan(value) else float(f"{value:.6g}")


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Write a table; the first row's keys are its header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(path, text.getvalue())
    return path


def remove_others(folder: Path, *, tables: Iterable[str], figures: Iterable[str], written: Sequence[Path]) -> None:
    """Remove tables and figures of an earlier call that this one has no data for: they would contradict the page."""
    names = {f"{name}.csv" for name in tables} | {f"{name}.{kind}" for name in figures for kind in ("png", "svg")}
    for path in sorted(folder.iterdir()):
        if path.name in names and path not in written:
            path.unlink()


def markdown(
    title: str,
    *,
    cautions: Sequence[str],
    parts: Sequence[Part],
    figures: Sequence[Path],
    texts: Mapping[str, FigureText],
) -> str:
    """Return a study as Markdown: cautions, parts, figures."""
    lines = [f"# {title}", ""]
    lines += [f"**{sentence}**\n" for sentence in cautions]
    for part in parts:
        lines += [f"## {part.title}", "", *(f"* {sentence}" for sentence in part.sentences)]
        lines += [""] if part.sentences else []
        if part.header:
            table = (part.header, ["---"] * len(part.header), *part.rows)
            lines += [*(f"| {' | '.join(cells)} |" for cells in table), ""]
    for path in figures:
        text = texts[path.stem]
        lines += [f"## {text.title}", "", text.caption, "", f"![{path.stem}]({path.name})", ""]
    return "\n".join(lines)


def html_sections(
    *, cautions: Sequence[str], parts: Sequence[Part], figures: Sequence[Path], texts: Mapping[str, FigureText]
) -> list[str]:
    """Return a study as sections of a page: its first part, which is words, then figures, then tables."""
    words, *tables = parts
    shown = [html.section(words.title, html.warning_box(cautions), html.bullets(words.sentences))]
    for path in figures:
        text = texts[path.stem]
        shown.append(html.section(text.title, html.note(text.caption), html.image(path.read_bytes(), alt=text.title)))
    return shown + [
        html.section(part.title, *map(html.note, part.sentences), html.table(part.header, part.rows)) for part in tables
    ]
