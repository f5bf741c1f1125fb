"""`vla-rl card`: the model card of a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.policies.openvla_oft.profiles import ProfileName

LicenceOption = Annotated[
    str | None,
    typer.Option(
        "--license", help="Licence, as the hub names it, like apache-2.0 or other; without it the card names none."
    ),
]
EvaluationsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--eval",
        help="Folder of an evaluation to quote, besides those found in the usual folders; may be repeated.",
        show_default=False,
    ),
]
ProfileOption = Annotated[
    ProfileName,
    typer.Option(
        "--profile", help="Who trained a checkpoint directory, and so its conventions; runs and exports record them."
    ),
]


def card(
    target: Annotated[str, typer.Argument(help="A run, one of its checkpoints, or an export.")],
    out: Annotated[Path | None, typer.Option("--out", help="File to write.", show_default="the terminal")] = None,
    repo: Annotated[str | None, typer.Option("--repo", help="USER/NAME on the hub, for the card's commands.")] = None,
    license_name: LicenceOption = None,
    evaluations: EvaluationsOption = None,
    profile: ProfileOption = "auto",
) -> None:
    """Write the model card of a policy: how it was made, what it scored, how to load it."""
    from vla_rl.files import atomic_write_text
    from vla_rl.sharing.card import make_card

    written = make_card(
        target, repo=repo, license_name=license_name, evaluations=tuple(evaluations or ()), profile=profile
    )
    if out is None:
        print(written.text, end="")
        return
    atomic_write_text(out, written.text)
    print(f"written: {out}, with {len(written.scores)} evaluations")
