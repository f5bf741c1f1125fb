"""Messages of an env worker over its two pipes: to the inference worker, and to the cell's supervisor.

With the inference worker it exchanges slot numbers; the arrays stay in shared memory. Such a message is one small
write: the sender's incarnation, then slot numbers, as int64. The incarnation counts the starts of the env worker; it
identifies replies to a dead predecessor, which are ignored.

With the supervisor it exchanges records:

    env worker ─► supervisor   EpisodeRecord   an episode is over
                               StartRefusal    this worker cannot start or go on, and no restart would help
                               JobRequest      a slot has nothing to play (evaluation only; training has a schedule)
    supervisor ─► env worker   EpisodeJob      the answer to a JobRequest
                               NoMoreJobs      the answer when the queue is empty

Requests are answered in order, so an answer names no request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord


@dataclass(frozen=True, slots=True)
class StartRefusal:
    """Message of a worker that cannot start, or whose policy fails, if no restart would help."""

    reason: str


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Request of a slot for an episode to play; it waits for the answer."""


@dataclass(frozen=True, slots=True)
class NoMoreJobs:
    """Answer that the slot's work is done."""


WorkerMessage = EpisodeRecord | StartRefusal | JobRequest
SupervisorMessage = EpisodeJob | NoMoreJobs


def tell_supervisor(connection: Connection, message: WorkerMessage) -> None:
    """Send from the env worker's end."""
    connection.send(message)


def hear_worker(connection: Connection) -> WorkerMessage:
    """Receive at the supervisor's end. Blocks; poll first.

    Raises:
        EOFError: the other side has closed the pipe.
    """
    message: WorkerMessage = connection.recv()
    return message


def answer_worker(connection: Connection, message: SupervisorMessage) -> None:
    """Send from the supervisor's end."""
    connection.send(message)


def hear_supervisor(connection: Connection) -> SupervisorMessage:
    """Receive at the env worker's end. Blocks; poll first.

    Raises:
        EOFError: the other side has closed the pipe.
    """
    message: SupervisorMessage = connection.recv()
    return message


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
