"""`vla-rl export`: a trained policy as a checkpoint or an adapter that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.policies.openvla_oft.profiles import ProfileName


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A run (its latest checkpoint is used), a checkpoint, a directory of weights or an adapter, a hub id, "
            "or 'tiny' for a small random model (a folder of that name is ./tiny)."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to create; an existing one is never overwritten.")],
    merge: Annotated[
        bool,
        typer.Option(
            "--merge/--adapter",
            help="Write a whole checkpoint in the public layout, or a LoRA adapter in peft's layout.",
        ),
    ] = True,
    dtype: Annotated[
        Literal["bfloat16", "float32"] | None,
        typer.Option(
            "--dtype",
            help="Dtype of the written weights.",
            show_default="the frozen weights' own; float32 with policy.train_backbone",
        ),
    ] = None,
    verify: Annotated[
        int,
        typer.Option(
            "--verify",
            min=0,
            help="Number of observations on which policy and export are compared; 0: no comparison.",
        ),
    ] = 8,
    profile: Annotated[
        ProfileName,
        typer.Option(
            "--profile", help="Who trained a checkpoint directory, and so its conventions; a run records them."
        ),
    ] = "auto",
) -> None:
    """Write a policy for other programs to load, and check that the export gives the same outputs."""
    from vla_rl.export.policy_export import export as run_export

    only_comments()
    report = run_export(
        checkpoint, out=out, kind="merged" if merge else "adapter", dtype=dtype, verify=verify, profile=profile
    )
    print(report)
