"""Store in which the ranks of a run find each other: torch's TCPStore at MASTER_ADDR:MASTER_PORT."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from vla_rl.errors import UserError
from vla_rl.learner.rank_failures import first_line

STORE_TIMEOUT = timedelta(seconds=60)
PATIENCE_S = 30.0  # a rank that waits for others for longer ends by itself when it is asked to


def store_of_ranks(rank: int, *, timeout_s: float, heed: Callable[[], None]) -> TCPStore:
    """Return a client of the ranks' store, which rank 0 hosts unless its launcher does."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or port is None or not port.isdecimal():
        raise UserError(
            f"RANK and WORLD_SIZE are set, so this is one of several ranks, but MASTER_ADDR is {host!r} and "
            f"MASTER_PORT {port!r}. Set them to rank 0's machine and a free port there, or unset RANK and WORLD_SIZE "
            "for a run of its own"
        )
    hosts = rank == 0 and not uses_agent_store()
    if not hosts:
        _wait_for_server(host, int(port), timeout_s, heed)
    try:
        store = TCPStore(
            host,
            int(port),
            is_master=hosts,
            timeout=STORE_TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,  # the process group of this process shares the server
        )
    except RuntimeError as error:
        raise UserError(
            f"MASTER_ADDR:MASTER_PORT: {address()} cannot be {'opened' if hosts else 'used'} ({first_line(error)}). "
            + ("Choose a free port of this machine, the same on all machines" if hosts else "Is rank 0 there?")
        ) from error
    return store


def _wait_for_server(host: str, port: int, timeout_s: float, heed: Callable[[], None]) -> None:
    """Wait until somebody listens: torch's own client would wait without heeding signals."""
    began = time.monotonic()
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
        except OSError as error:
            waited = time.monotonic() - began
            if waited > timeout_s:
                raise UserError(
                    f"MASTER_ADDR:MASTER_PORT: {address()} did not answer within {timeout_s:.0f} s ({error}). It "
                    "must be rank 0's machine, by a name that this machine knows, and a port that no firewall closes"
                ) from error
            time.sleep(0.2)
            if waited > PATIENCE_S:
                heed()
        else:
            return


def uses_agent_store() -> bool:
    """Return whether the launcher hosts the store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def address() -> str:
    """Return where the store is, for people."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
