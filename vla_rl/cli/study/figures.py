"""`vla-rl study figures`: the paper's figures from finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.cli.study.options import require_matplotlib
from vla_rl.errors import preflight


def figures(
    studies: Annotated[
        list[Path],
        typer.Argument(metavar="STUDY...", help="Folders of finished Meta-World studies with one recipe and budget."),
    ],
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder for the figures; created if it is missing.")
    ],
) -> None:
    """Draw the paper's Figures 2 and 4 to 9 from the runs of studies, and say which runs the others lack."""
    require_matplotlib()
    from vla_rl.studies.paper_figures.outputs import write_figures
    from vla_rl.studies.paper_figures.pool import read_pool

    only_comments()
    with preflight():
        written = write_figures(read_pool(studies), out)
    print("\n".join(f"wrote {path}" for path in written.files))
    print("\n".join(written.not_drawn), end="\n" if written.not_drawn else "")
