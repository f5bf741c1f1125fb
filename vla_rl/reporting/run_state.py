"""`state.json`: whether a run goes on, and how it ended.

    {"state": "running", "reason": "", "changed": "2026-01-02T03:04:05+00:00", "process": {"host": "node7", ...}}

The process that writes a run records itself at the start and the end of the run. A run that was killed records no end.
A reader therefore looks for the process; where it cannot, on another machine or in another container, it goes by the
age of the run's files. Reading takes no lock and writes nothing, so that it never disturbs a run.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from vla_rl.errors import RunFailureError, UserError
from vla_rl.files import atomic_write_json, read_json_object
from vla_rl.reporting.metrics_file import METRICS_FILE
from vla_rl.reporting.run_layout import log_folders, newest_evaluation

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"
RECORDED = Literal["running", "finished", "interrupted", "failed"]
QUIET_S = 30 * 60.0  # a run that cannot be looked for and has written nothing for so long counts as interrupted
LONGEST_REASON = 300  # characters


@dataclass(frozen=True, slots=True)
class Process:
    """One process of one machine, so that no later process with its number is taken for it."""

    host: str  # for people
    boot: str | None  # id of the running kernel; None: unknown
    namespace: str | None  # id of the process numbers' namespace, which differs between containers
    pid: int
    started: int | None  # in clock ticks after the boot

    @classmethod
    def own(cls) -> Self:
        """Return this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _boot(), _namespace(), pid, _start_of(pid))

    def is_alive(self) -> bool | None:
        """Return whether the process exists; None if it cannot be seen from here."""
        here = (_boot(), _namespace())
        if None in here or (self.boot, self.namespace) != here or self.started is None:
            return None
        return _start_of(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class RunState:
    """State of a run, as far as its folder tells it."""

    state: Literal["running", "finished", "interrupted", "failed", "unknown"]
    reason: str  # one sentence, or empty
    seen: float | None  # when the run last wrote something, in seconds since 1970


class RunLife:
    """Record of a run's start and end, kept by the process that writes the run's folder.

        with RunLife(run_dir) as life:
            ...                 # an error here, before the run has begun, records nothing
            life.begin()
            ...
            life.interrupted = stop.requested

    At the end the run is recorded as finished, as interrupted, or, after an error, as failed with the error's message.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / STATE_FILE
        self._has_begun = False
        self.interrupted = False  # ended before its time, by a request to stop
        self.reason = ""  # why it ended, if that is worth a sentence

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Record that the run is running.

        Raises:
            OSError: the file cannot be written.
        """
        self._write("running", "")
        self._has_begun = True

    def fail(self, reason: str) -> None:
        """Record that the run failed, where the process is ended before it leaves the `with` block.

        Raises:
            OSError: the file cannot be written.
        """
        if self._has_begun:
            self._write("failed", reason)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._has_begun:
            return
        if error is None:
            state: RECORDED = "interrupted" if self.interrupted else "finished"
            reason = self.reason
        elif isinstance(error, Exception):
            state, reason = "failed", in_one_line(error)
        else:  # Ctrl-C, or an exit that was asked for
            state, reason = "interrupted", self.reason
        try:
            self._write(state, reason)
        except OSError as fault:  # a full disk must not hide how the run ended from whoever started it
            logger.warning("%s: the end of the run is not recorded: %s", self._path, fault)

    def _write(self, state: RECORDED, reason: str) -> None:
        changed = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"state": state, "reason": reason, "changed": changed, "process": asdict(Process.own())}
        atomic_write_json(self._path, record)


def in_one_line(error: BaseException) -> str:
    """Return the message of an error as one short line; with its type, unless it is written for people."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = f"{lines[0]} … {lines[-1]}" if len(lines) > 1 else "".join(lines)
    if not isinstance(error, RunFailureError | UserError):
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return message if len(message) <= LONGEST_REASON else f"{message[:LONGEST_REASON]} …"


def read_state(run_dir: Path, *, is_spent: bool) -> RunState:
    """Tell the state of a run from its folder.

    Args:
        run_dir: the folder of a run.
        is_spent: its log points reach the end of its budget. Runs of older versions have no record, and this decides.

    Raises:
        ValueError: `state.json` is broken.
        OSError: it cannot be read.
    """
    seen = last_sign(run_dir, is_spent=is_spent)
    path = run_dir / STATE_FILE
    if not os.path.lexists(path):
        return RunState("finished", "", seen) if is_spent else _unrecorded(seen)
    record = read_json_object(path)
    match record:
        case {"state": "running", "process": dict() as values}:
            return _of_running(_process(values, path), seen)
        case {"state": str() as state, "reason": str() as reason} if state in get_args(RECORDED):
            return RunState(state, reason, seen)  # type: ignore[arg-type]
    raise ValueError(
        f"{path}: expected a state ({', '.join(get_args(RECORDED))}), its reason and its process, found "
        f"{str(record)[:80]}; remove the file"
    )


def _process(values: dict[str, Any], path: Path) -> Process:
    match values:
        case {
            "host": str() as host,
            "boot": str() | None as boot,
            "namespace": str() | None as namespace,
            "pid": int() as pid,
            "started": int() | None as started,
        }:
            return Process(host, boot, namespace, pid, started)
    raise ValueError(f"{path}: expected a process, found {str(values)[:80]}; remove the file")


def _of_running(process: Process, seen: float | None) -> RunState:
    alive = process.is_alive()
    if alive:
        return RunState("running", "", seen)
    if alive is None and _is_recent(seen):
        return RunState("running", f"on {process.host}, which cannot be seen from here: its files are recent", seen)
    why = "its process is gone" if alive is False else f"on {process.host}, and nothing was written for a long time"
    return RunState("interrupted", f"no end was recorded, {why}: it may have been killed", seen)


def _unrecorded(seen: float | None) -> RunState:
    return RunState("unknown", f"there is no {STATE_FILE}: the run has not begun, or is of an older version", seen)


def _is_recent(seen: float | None) -> bool:
    return seen is not None and time.time() - seen < QUIET_S


def last_sign(run_dir: Path, *, is_spent: bool = False) -> float | None:
    """Return when a run last wrote something, in seconds since 1970; None if it never did.

    Metrics, state and logs tell it, and the newest of its evaluations, which may take hours and write nothing else.

    Args:
        run_dir: the folder of a run.
        is_spent: as of `read_state`.
    """
    evaluation = newest_evaluation(run_dir, is_spent=is_spent)
    folders = log_folders(run_dir)
    if evaluation is not None:
        folders += [evaluation, *log_folders(evaluation)]
    times = []
    for path in (run_dir / METRICS_FILE, run_dir / STATE_FILE, *chain.from_iterable(map(_paths_in, folders))):
        try:
            found = path.lstat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode):
            times.append(found.st_mtime)
    return max(times, default=None)


def _paths_in(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError:
        return []


def _boot() -> str | None:
    return _read(Path("/proc/sys/kernel/random/boot_id"))


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a Path would be no name of a file
    except OSError:
        return None


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks after the boot; None if it has ended.

    proc(5): after the name, which is in brackets and may hold any character, come the state and, as the 22nd field of
    the line, the start.
    """
    line = _read(Path(f"/proc/{pid}/stat"))
    if line is None:
        return None
    fields = line.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
