"""`vla-rl push`: a policy and its model card, to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli.card import EvaluationsOption, LicenceOption, ProfileOption
from vla_rl.cli.commentary import only_comments


def push(
    target: Annotated[str, typer.Argument(help="An export; or a run or checkpoint, which is exported first.")],
    repo: Annotated[str, typer.Argument(help="USER/NAME or ORGANISATION/NAME on the hub; created if missing.")],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the files and print the card, without a network. A run is still exported."
        ),
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private; refuse one that is public.")
    ] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch to write to.", show_default="main")] = None,
    license_name: LicenceOption = None,
    evaluations: EvaluationsOption = None,
    card: Annotated[
        Path | None, typer.Option("--card", help="File to use as the card, instead of a generated one.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            help="Pattern of further files below the run or export, like 'eval/**/*.json'; may be repeated. Optimizer "
            "state, replay and logs stay here without it.",
            show_default=False,
        ),
    ] = None,
    profile: ProfileOption = "auto",
) -> None:
    """Upload a policy with its model card to the Hugging Face hub, in one commit."""
    from vla_rl.sharing import hub_upload

    request = hub_upload.Request(
        target=target,
        repo=repo,
        revision=revision,
        private=private,
        license_name=license_name,
        evaluations=tuple(evaluations or ()),
        card=card,
        include=tuple(include or ()),
        profile=profile,
    )
    if dry_run:
        upload = hub_upload.dry_run(request)
        for name, size in upload.sizes.items():
            print(f"{size:>16,}  {name}")
        print(f"{sum(upload.sizes.values()):>16,}  bytes in {len(upload.sizes)} files for {repo}")
        if upload.left_out:
            print(f"stays here: {', '.join(upload.left_out)}")
        print(f"\n{upload.card}", end="")
        return
    only_comments()
    print(f"uploaded: {hub_upload.push(request, say=print)}")
