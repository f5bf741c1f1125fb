"""`vla-rl report`: the results of runs, as one page."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.errors import UserError, preflight

if TYPE_CHECKING:
    from vla_rl.evaluation.comparison import ComparisonReport


def report(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs and studies to show on one page.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The HTML file; figures come beside it, in a folder NAME_figures.",
            show_default="report.html in the run's folder; for several, in the current folder",
        ),
    ] = None,
) -> None:
    """Write figures and one self-contained HTML page about runs."""
    try:
        from vla_rl.reporting.report import write_report
        from vla_rl.reporting.run_plots import FIGURES_FOLDER, write_figures
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UserError("report needs matplotlib, which is not installed: pip install 'vla-rl[plots]'") from error

    only_comments()
    runs = [path for path in paths if not _is_study(path)]
    with preflight():
        studies = [(path.resolve().name, _write_study(path)) for path in paths if _is_study(path)]
        page = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
        if out or len(paths) > 1 or not studies:  # the page of a single study was written with it
            write_report(runs, page, comparisons=compare_runs(runs), studies=studies)
        shared = page.with_name(f"{page.stem}_{FIGURES_FOLDER}")  # several pages may lie side by side
        pictures = write_figures(runs, shared if out or len(paths) > 1 else paths[0] / FIGURES_FOLDER)
    for picture in pictures:
        print(picture)
    print(page)


def _is_study(path: Path) -> bool:
    from vla_rl.studies.study_file import STUDY_FILE

    return (path / STUDY_FILE).is_file()


def _write_study(path: Path) -> tuple[str, ...]:
    """Aggregate a study again; return the sections of its page."""
    from vla_rl.studies.grouped.runner import GROUPS
    from vla_rl.studies.libero.runner import LIBERO
    from vla_rl.studies.study_file import kind_of

    kind = kind_of(path)
    if kind == LIBERO:
        from vla_rl.studies.libero.outputs import write_study
    elif kind == GROUPS:
        from vla_rl.studies.grouped.outputs import write_study
    else:
        from vla_rl.studies.metaworld.outputs import write_study

    written = write_study(path)
    print("\n".join(map(str, written.files)))
    return written.sections


def compare_runs(runs: list[Path]) -> list[str]:
    """Return a sentence for each two runs whose newest evaluations share episodes: equal tasks, states and seeds.

    Raises:
        ValueError: a file of episodes is broken.
    """
    from vla_rl.evaluation.comparison import compare_evaluations, newest_episodes
    from vla_rl.evaluation.episode_log import read_episodes

    newest = {run: path for run in runs if (path := newest_episodes(run)) is not None}
    keys = {run: {episode.key for episode in read_episodes(path)} for run, path in newest.items()}
    return [
        _comparison(first, second, compare_evaluations(newest[first].parent, newest[second].parent))
        for first, second in combinations(newest, 2)
        if keys[first] & keys[second]
    ]


def _comparison(first: Path, second: Path, report: ComparisonReport) -> str:
    from vla_rl.evaluation.comparison import interval_in_words, mcnemar_in_words

    result = report.comparison
    difference = (
        f"Newest evaluations of {first.resolve().name} and {second.resolve().name}, {result.pairs} episodes in common: "
        f"success differs by {100 * result.difference:+.1f} points ({interval_in_words(result)}); only the first "
        f"succeeded in {result.test.only_first}, only the second in {result.test.only_second} "
        f"({mcnemar_in_words(result)})"
    )
    return "; ".join([difference, *report.cautions]) + "."
