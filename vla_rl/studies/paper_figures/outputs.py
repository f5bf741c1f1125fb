"""Files of the paper's figures: PNG and SVG, the table behind each as CSV, and a page about all."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_rl.files import atomic_write_text
from vla_rl.studies.figures import save, style
from vla_rl.studies.metaworld.grid import StudyRun
from vla_rl.studies.metaworld.missing import grids_of
from vla_rl.studies.metaworld.paper_figure import REGIMES, Drawn, PaperFigure
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.words import ENOUGH_SEEDS
from vla_rl.studies.pages import remove_others, write_csv
from vla_rl.studies.paper_figures.gallery import FIGURES
from vla_rl.studies.paper_figures.pool import Pool

PAGE = "figures.md"
TITLE = "Figures 2 and 4 to 9 of the paper"


@dataclass(frozen=True, slots=True)
class WrittenFigures:
    """Files, and a sentence about each figure that the runs do not carry."""

    files: tuple[Path, ...]
    not_drawn: tuple[str, ...]


def write_figures(pool: Pool, out: Path) -> WrittenFigures:
    """Draw every figure that the runs carry, and write a page that says of the others which runs they lack."""
    files: list[Path] = []
    not_drawn: list[str] = []
    lines = [*_opening(pool)]
    for figure in FIGURES:
        with style("paper"):
            drawn = figure.draw(pool.results)
            if drawn is None:
                not_drawn.append(f"Figure {figure.number} is not drawn. {_lack(figure, pool)}")
            else:
                files += [*save(drawn.figure, out, figure.stem), write_csv(out / f"{figure.stem}.csv", drawn.rows)]
        lines += _section(figure, drawn, pool, out)
    stems = [figure.stem for figure in FIGURES]
    out.mkdir(parents=True, exist_ok=True)
    remove_others(out, tables=stems, figures=stems, written=files)
    atomic_write_text(out / PAGE, "\n".join(lines) + "\n")
    return WrittenFigures((*files, out / PAGE), tuple(not_drawn))


def _opening(pool: Pool) -> list[str]:
    """Return title, origin and cautions."""
    studies = ", ".join(map(str, pool.grids))
    cautions = [
        "Returns are those of training episodes with sampled actions, in the benchmark's units; the paper's Figures 7 "
        "and 9 have those of evaluations."
    ]
    unfinished = pool.planned - len(pool.results) - len(pool.broken)
    if unfinished > 0:
        cautions.append(f"PARTIAL: {unfinished} of {pool.planned} planned runs are missing.")
    cautions += [f"LEFT OUT: {sentence} (move its folder elsewhere to make it again)" for sentence in pool.broken]
    cautions += [*pool.repeated, "Commands that make missing runs say with `--dry-run` how long they take."]
    return [
        f"# {TITLE}",
        "",
        "The paper is [GIPO](https://arxiv.org/abs/2603.03955). "
        f"{len(pool.results)} runs of {studies}: recipe {pool.first.recipe}, {pool.first.optimizer_steps:,} optimizer "
        "steps each.",
        "",
        *(f"* {sentence}" for sentence in cautions),
        "",
    ]


def _section(figure: PaperFigure, drawn: Drawn | None, pool: Pool, out: Path) -> list[str]:
    """Return a figure's part of the page."""
    lines = [f"## Figure {figure.number}: {figure.text.title}", "", figure.text.caption, ""]
    missing = pool.missing(figure)
    told = [] if drawn is None else [*_extents(drawn.results), *drawn.remarks]
    if drawn is None:
        told.append(f"**Not drawn.** {_lack(figure, pool)}")
    elif missing:
        told.append(f"**Incomplete.** {_lacking(missing, pool)}")
    lines += [*(f"* {sentence}" for sentence in told), ""] if told else []
    lines += _commands(figure, missing, pool, out) if missing else []
    if drawn is not None:
        picture, table = f"{figure.stem}.png", f"{figure.stem}.csv"
        lines += [f"![Figure {figure.number}]({picture})", "", f"Numbers: [{table}]({table})", ""]
    return lines


def _extents(results: RunTable) -> list[str]:
    """Return a sentence about the runs of each regime."""
    told = []
    for regime in REGIMES:
        chosen = results.where(regime=regime)
        if chosen:
            counts = [len(by_seed) for _, _, _, by_seed in chosen.cells()]
            few = f"; intervals over fewer than {ENOUGH_SEEDS} seeds say little" if min(counts) < ENOUGH_SEEDS else ""
            span = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            told.append(
                f"{regime}: {len(chosen)} runs of {', '.join(chosen.surrogates)} on {', '.join(chosen.tasks)}; "
                f"seeds: {span}{few}."
            )
    return told


def _lack(figure: PaperFigure, pool: Pool) -> str:
    """Say what a figure that was not drawn needs, and which runs it lacks."""
    missing = pool.missing(figure)
    without = "Those that are here have not logged what it shows." if not missing else _lacking(missing, pool)
    return f"It needs {figure.needs}. {without}"


def _lacking(missing: Sequence[StudyRun], pool: Pool) -> str:
    """Name the missing runs."""
    told = []
    places = ((run.task, run.surrogate, run.regime, str(run.seed)) for run in missing)
    for tasks, surrogates, regimes, seeds in grids_of(places, axes=(3, 0, 1, 2)):
        those = "" if len(seeds) == pool.seeds else f" with seed {', '.join(seeds)}"
        told.append(f"{' and '.join(regimes)} runs of {', '.join(surrogates)} on {', '.join(tasks)}{those}")
    return f"Missing are {'; '.join(told)}."


def _commands(figure: PaperFigure, missing: Sequence[StudyRun], pool: Pool, out: Path) -> list[str]:
    """Return the commands that make the missing runs and draw again.

    A study that has some seeds of a run's task, surrogate and regime, or plans them, gets the others. The remaining
    runs get folders of their own.
    """
    seeds = {(str(pool.home(run) or ""), run.task, run.surrogate, run.regime): str(run.seed + 1) for run in missing}
    first = next(folder if folder.name else folder.resolve() for folder in pool.grids)
    commands: list[list[str]] = []
    more: list[str] = []
    for (home,), tasks, surrogates, regimes, (count,) in grids_of(
        ((*place, count) for place, count in seeds.items()), axes=(1, 2, 3)
    ):
        if not home:
            number = f"_{len(more) + 1}" if more else ""
            more.append(str(first.with_name(f"{first.name}_figure_{figure.number}{number}")))
        options = {
            "--tasks": ",".join(tasks),
            "--surrogates": ",".join(surrogates),
            "--regimes": ",".join(regimes),
            "--seeds": count,
            "--budget": str(pool.first.optimizer_steps),
            "--recipe": pool.grids[Path(home)].recipe if home else pool.first.recipe,
            "--out": home or more[-1],
        }
        commands.append(["vla-rl", "study", "metaworld", *(word for option in options.items() for word in option)])
    folders = dict.fromkeys((*map(str, pool.grids), *more))
    commands.append(["vla-rl", "study", "figures", *folders, "--out", str(out)])
    return ["  ```sh", *(f"  {shlex.join(command)}" for command in commands), "  ```", ""]
