"""`vla-rl study gridworld`: exact bias and variance of every surrogate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.cli.study.options import require_matplotlib


def gridworld(
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder for the results; created if it is missing.")
    ],
) -> None:
    """Compute exact bias and variance of every surrogate on the 2x2 GridWorld: JSON, CSV, table and figures."""
    require_matplotlib()
    from vla_rl.studies.gridworld.enumeration import study as run_study
    from vla_rl.studies.gridworld.outputs import markdown_table, write_records
    from vla_rl.studies.gridworld.plots import plot_pareto, plot_weights

    only_comments()
    records = run_study()
    written = [*write_records(out, records), *plot_pareto(out, records), *plot_weights(out)]
    print(markdown_table(records))
    print("\n".join(f"wrote {path}" for path in written))
