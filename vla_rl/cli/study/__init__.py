"""`vla-rl study`: the GIPO paper's experiments, and others, as commands."""

from __future__ import annotations

import typer

from vla_rl.cli.study import figures, gridworld, groups, libero, metaworld

app = typer.Typer(no_args_is_help=True, help="Run a study: the GIPO paper's experiments, and others.")


@app.callback()
def study() -> None:
    """Run a study: the GIPO paper's experiments, and others."""


app.command("gridworld")(gridworld.gridworld)
app.command("metaworld")(metaworld.metaworld)
app.command("libero")(libero.libero)
app.command("groups")(groups.groups)
app.command("merge")(metaworld.merge)
app.command("figures")(figures.figures)
