"""`vla-rl assets`: LIBERO's meshes and textures: assets in use, their completeness, and their download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli import exit_codes
from vla_rl.errors import preflight

app = typer.Typer(help="Show, check and download LIBERO's assets.", no_args_is_help=True)


@app.command()
def status() -> None:
    """Show the assets that env.assets=auto uses, why, and whether they are complete."""
    from vla_rl.envs.libero.assets import resolve_assets
    from vla_rl.envs.libero.full_assets import completeness, downloaded_folder, why_chosen

    with preflight():
        assets = resolve_assets("auto")
        print(f"{assets.kind} assets: {assets.folder}\n    {why_chosen(assets)}")
        for suite, words in completeness(assets.folder).items():
            print(f"    {suite:16} {words}")
    if downloaded_folder().is_dir() and downloaded_folder() != assets.folder:
        print(f"not in use: {downloaded_folder()}, downloaded before")


@app.command()
def path() -> None:
    """Print the folder that env.assets=auto would use, and nothing else."""
    from vla_rl.envs.libero.assets import resolve_assets

    with preflight():
        print(resolve_assets("auto").folder)


@app.command()
def check(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder of LIBERO's assets.", show_default="the one in use")
    ] = None,
) -> None:
    """Check every file that the 40 tasks open, then build each task; takes about half a minute.

    Exits with 2 if something is wrong. Also reports how many LIBERO-90 tasks have all their files.
    """
    from vla_rl.doctor.simulator import check_import
    from vla_rl.doctor.task_builds import build_faults
    from vla_rl.envs.libero.assets import resolve_assets
    from vla_rl.envs.libero.full_assets import check_tasks, completeness

    with preflight():
        looked_at = (resolve_assets("auto") if folder is None else resolve_assets(str(folder))).folder
        checks = check_tasks(looked_at)
        libero_90 = completeness(looked_at)["libero_90"]
    for one in checks:
        for problem in one.problems:
            print(f"{one.task.suite} {one.task.task_id}: {problem}")
    complete = [one.task for one in checks if not one.problems]
    simulator = check_import()
    faults = build_faults(looked_at, complete) if simulator.status == "ok" else {}
    for task, fault in faults.items():
        print(f"{task.suite} {task.task_id}: cannot be built: {fault}")
    good = len(complete) - len(faults)
    built = "" if simulator.status == "ok" else f"; not built, because the simulator does not start: {simulator.found}"
    print(f"{looked_at}: {good} of {len(checks)} tasks are in order{built}")
    print(f"libero_90, which is not part of this: {libero_90}")
    if good < len(checks):
        raise typer.Exit(exit_codes.USER_ERROR)


@app.command()
def download() -> None:
    """Download LIBERO's full assets from the model hub into the cache, completely or not at all. Never prompts."""
    from vla_rl.envs.libero.assets import ASSETS_VARIABLE, resolve_assets
    from vla_rl.envs.libero.full_assets import completeness, fetch_from_hub
    from vla_rl.envs.libero.full_assets import download as download_assets

    with preflight():
        folder = download_assets(fetch_from_hub)
        print(folder)
        for suite, words in completeness(folder).items():
            print(f"    {suite:16} {words}")
        if resolve_assets("auto").folder != folder:
            print(f"to use it: export {ASSETS_VARIABLE}={folder}")
