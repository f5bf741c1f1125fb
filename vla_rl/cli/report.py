"""`vla-rl report`: what came of a run, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.errors import UserError, preflight


def report(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs; several are drawn together.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The HTML file.", show_default="report.html in the run's folder, or here for several"
        ),
    ] = None,
) -> None:
    """Write figures and one self-contained HTML page about runs."""
    try:
        from vla_rl.reporting.plots import write_figures
        from vla_rl.reporting.report import write_report
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UserError("report needs matplotlib, which is not installed: pip install 'vla-rl[plots]'") from error

    page = out or (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    with preflight():
        write_report(paths, page)
        pictures = [picture for path in paths for picture in write_figures(path)]
    for picture in pictures:
        print(picture)
    print(page)
