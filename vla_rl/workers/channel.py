"""Requests and replies between an env worker and the inference worker: slot numbers over a pipe, arrays stay in place.

A message is one small write: the sender's incarnation, then slot numbers, as int64. The incarnation counts the starts
of the env worker; it identifies replies to a dead predecessor, which are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np


def send_slots(connection: Connection, incarnation: int, slots: Sequence[int]) -> None:
    """Send slot numbers, (n,) with n >= 1."""
    connection.send_bytes(np.array([incarnation, *slots], dtype=np.int64).tobytes())


def receive_slots(connection: Connection) -> tuple[int, list[int]]:
    """Receive one message: incarnation and slot numbers. Blocks; poll first.

    Raises:
        EOFError: the other side has closed the pipe.
    """
    message = np.frombuffer(connection.recv_bytes(), dtype=np.int64)
    return int(message[0]), [int(slot) for slot in message[1:]]


def drain(connection: Connection) -> None:
    """Discard what a predecessor did not read."""
    while connection.poll():
        connection.recv_bytes()
