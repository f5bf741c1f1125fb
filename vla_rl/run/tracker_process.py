"""The process in which a tracker's library runs, where it may wait, fail or crash without harm to the run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from vla_rl.files import atomic_write_json
from vla_rl.reporting.run_state import in_one_line
from vla_rl.tracking import Ending, Session, TrackedRun, Tracker
from vla_rl.workers.process import enter_child, leave_child


@dataclass(frozen=True, slots=True)
class Point:
    """One log point on its way to a tracker."""

    values: dict[str, float]
    optimizer_steps: int
    time: float  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file on its way to a tracker."""

    file: Path
    name: str


@dataclass(frozen=True, slots=True)
class End:
    """The last message."""

    ending: Ending


Message = Point | Attachment | End


@dataclass(frozen=True, slots=True)
class Answer:
    """Outcome of the opening of a session, which is answered first, or of one message, which are answered in turn."""

    failure: str = ""  # one line; empty: it was done
    place: str = ""  # of a session that was opened
    warning: str | None = None  # of such a session


def serve(
    name: str, tracker: Tracker, run: TrackedRun, record: Path, inbox: Connection, answers: Connection, log_path: Path
) -> NoReturn:
    """Open a session and take messages until the last one. The target of the process.

    Args:
        name: of the tracker in a recipe.
        tracker: its settings.
        run: what it is told about the run.
        record: file that gets the session's identity and place.
        inbox: messages.
        answers: one `Answer` for the opening, and one for each message.
        log_path: log of this process, with all that the library prints.
    """
    # Without a terminal nothing can be asked for, and Ctrl-C does not reach what a library starts.
    os.setsid()
    log = enter_child(f"tracker_{name}", log_path, threads=1)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a device
        os.dup2(nothing.fileno(), 0)
    try:
        session = tracker.begin(run)
        atomic_write_json(record, _recorded(tracker, session))
    except Exception as error:  # a library may raise anything
        log.exception("no session")
        answers.send(Answer(failure=in_one_line(error)))
        leave_child()
    answers.send(Answer(place=session.place, warning=session.warning))
    while True:
        message: Message = inbox.recv()
        failure = ""
        try:
            _take(session, message)
        except Exception as error:  # a library may raise anything
            log.exception("not taken: %s", type(message).__name__)
            failure = in_one_line(error)
        answers.send(Answer(failure=failure))
        if isinstance(message, End):
            leave_child()


def _take(session: Session, message: Message) -> None:
    match message:
        case Point(values, optimizer_steps, time):
            session.log(values, optimizer_steps=optimizer_steps, time=time)
        case Attachment(file, name):
            session.attach(file, name=name)
        case End(ending):
            session.end(ending)


def _recorded(tracker: Tracker, session: Session) -> dict[str, Any]:
    return {"identity": session.identity, "place": session.place, "destination": tracker.destination}
