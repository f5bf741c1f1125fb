"""Messages between an env worker and the cell's supervisor over their pipe.

    env worker ─► supervisor   EpisodeRecord   an episode is over
                               StartRefusal    this worker cannot start, and no restart would help
                               JobRequest      a slot has nothing to play (evaluation only; training has a schedule)
    supervisor ─► env worker   EpisodeJob      the answer to a JobRequest
                               NoMoreJobs      the answer when the queue is empty

Requests are answered in order, so an answer names no request.
"""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection

from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord


@dataclass(frozen=True, slots=True)
class StartRefusal:
    """Message of a worker that cannot start, if no restart would help."""

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
