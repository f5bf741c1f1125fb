"""`vla-rl study`: the paper's experiments as commands."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vla_rl.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Reproduce an experiment of the paper.")


@app.callback()
def study() -> None:
    """Reproduce an experiment of the paper."""


@app.command()
def gridworld(
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the results; made if it is missing.")],
) -> None:
    """Exact bias and variance of every surrogate on the 2x2 GridWorld: JSON, CSV, table and figures. Takes seconds."""
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed, and the study draws figures with it: pip install 'vla-rl[plots]'")
    from vla_rl.studies.gridworld import study as run_study
    from vla_rl.studies.gridworld_files import markdown_table, write_records
    from vla_rl.studies.gridworld_plots import plot_pareto, plot_weights

    records = run_study()
    written = [*write_records(out, records), *plot_pareto(out, records), *plot_weights(out)]
    print(markdown_table(records))
    print("\n".join(f"wrote {path}" for path in written))
