"""Ports for programs that are told one long before they open it."""

from __future__ import annotations

import socket
from random import SystemRandom

# Linux gives those from 32768 on to whoever asks for any, and to every connection: one of them may be taken meanwhile.
PORTS = range(20_000, 32_768)


def free_port() -> int:
    """Return a port of this machine that is free, and that nobody gets who does not ask for it by its number."""
    while True:
        port = SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
