"""`vla-rl watch`: a live page of runs, for a browser on this machine or behind an ssh tunnel."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from vla_rl.cli.commentary import only_comments
from vla_rl.errors import UserError
from vla_rl.reporting.text import distinct, printable

PORT = 8420
MOST_RUNS = 24


def watch(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, shown together.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any that is free.")] = PORT,
    host: Annotated[
        str, typer.Option("--host", help="localhost, 127.0.0.1 or ::1: only this machine can connect.")
    ] = "localhost",
) -> None:
    """Show runs on a live page, during training or afterwards. Only reads their folders; Ctrl-C ends it."""
    from vla_rl.watch.run_feed import RunFeed
    from vla_rl.watch.server import WatchServer

    _check(paths)
    names = distinct([printable(path.resolve().name) for path in paths])
    feeds = [RunFeed(path, name) for path, name in zip(paths, names, strict=True)]
    only_comments()
    with WatchServer(feeds, host=host, port=port) as server:
        print(f"watching {', '.join(names)}: open {server.address}")
        print(f"from another machine: ssh -L {server.port}:localhost:{server.port} {socket.gethostname()}")
        print("Ctrl-C ends the page; the runs continue", flush=True)
        server.serve_forever()


def _check(paths: list[Path]) -> None:
    """Refuse what is no run, and too many runs.

    Raises:
        UserError: naming the first folder that cannot be shown.
    """
    from vla_rl.reporting.run_index import find_runs

    if len(paths) > MOST_RUNS:
        raise UserError(f"at most {MOST_RUNS} runs fit on one page, found {len(paths)}; name fewer")
    seen: set[Path] = set()
    for path in paths:
        if not path.is_dir():
            found = "a file" if os.path.lexists(path) else "no such folder"
            raise UserError(f"{path}: expected the folder of a run, found {found}; `vla-rl runs` lists them")
        runs = find_runs(path)
        if not runs:
            raise UserError(f"{path}: expected the folder of a run, found no run in it; `vla-rl runs DIR` lists runs")
        if runs != [path]:
            named = f"{', '.join(map(str, runs[:5]))}{', ...' if len(runs) > 5 else ''}"
            raise UserError(f"{path}: expected the folder of a run, found a folder of runs; name them: {named}")
        if path.resolve() in seen:
            raise UserError(f"{path}: named twice; name each run once")
        seen.add(path.resolve())
