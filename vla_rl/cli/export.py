"""`vla-rl export`: a trained policy as a checkpoint or an adapter that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vla_rl.cli.start import only_comments


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a checkpoint's, a directory of weights or of an adapter, a hub id, or tiny, a "
            "random model (a folder of that name is ./tiny)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder; an existing one is never overwritten.")],
    merge: Annotated[
        bool,
        typer.Option(
            "--merge/--adapter", help="A whole checkpoint in the public layout, or a LoRA adapter in peft's layout."
        ),
    ] = True,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option("--dtype", help="Dtype of the written weights.", show_default="the frozen weights' own"),
    ] = None,
    verify: Annotated[
        int, typer.Option("--verify", min=0, help="Observations on which policy and export are compared.")
    ] = 8,
    profile: Annotated[
        Literal["auto", "oft_l1", "simplevla", "rlinf"],
        typer.Option("--profile", help="Family of a checkpoint directory; a run's recipe names it."),
    ] = "auto",
) -> None:
    """Write a policy for other programs to load, and compare its outputs before and after."""
    from vla_rl.export.export import export as run_export

    only_comments()
    report = run_export(
        checkpoint, out=out, kind="merged" if merge else "adapter", dtype=dtype, verify=verify, profile=profile
    )
    print(report)
