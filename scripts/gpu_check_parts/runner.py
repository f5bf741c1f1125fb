"""Runs phases one after the other, each in a process group of its own with a limit, and keeps what they told.

    phase ──► child process (own session) ──► its own children
      limit over, Ctrl-C or the end of the phase: SIGTERM to the group, `GRACE_S`, SIGKILL to the group

Nothing that a phase does can keep the next from running. Standard library alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from gpu_check_parts.child import CHECK_FAILED
from gpu_check_parts.record import Setting

GRACE_S = 5.0  # from SIGTERM to SIGKILL: time to remove shared memory
POLL_S = 0.05
LAST_LINES = 20
LONGEST_LINE = 300
LEAST_S = 10.0  # a phase is not begun with less: importing torch alone takes that long on a fresh machine

Status = Literal["passed", "failed", "timed out", "skipped", "interrupted", "not run"]
PASSING: tuple[Status, ...] = ("passed", "skipped")


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase."""

    name: str
    what: str  # one line for people
    module: str  # with `measure(record, setting)`
    limit_s: float
    needs: tuple[str, ...] = ()  # packages by the names they are imported under
    needs_gpu: bool = False


@dataclass(slots=True)
class Outcome:
    """What came of a phase."""

    status: Status
    reason: str = ""  # in one line, where it did not pass
    seconds: float = 0.0
    limit_s: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    last_lines: list[str] = field(default_factory=list)  # of its output, where it did not pass


@dataclass(slots=True)
class StopRequest:
    """Whether the user asked for the end. Signals are noted and never raised, so none can come at a bad moment."""

    requested: bool = False

    def listen(self) -> None:
        """Note Ctrl-C, SIGTERM and a closed terminal from now on."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, _number: int, _frame: object) -> None:
        self.requested = True


def run_phases(
    phases: Sequence[Phase],
    *,
    outcomes: dict[str, Outcome],
    has_gpu: bool,
    ends_at: float,
    stop: StopRequest,
    start: Callable[[Phase, float], Outcome],
    after_each: Callable[[Phase, Outcome], None],
) -> None:
    """Run phases in order; what cannot run, or is not reached, is noted with its reason.

    Args:
        phases: in the order of their worth, because the time may end before the last one.
        outcomes: filled in place, so that nothing is lost whatever ends the loop.
        has_gpu: whether a phase that needs one can run.
        ends_at: `time.monotonic()` after which nothing may run any more.
        stop: looked at before every phase.
        start: runs one phase within the seconds it is given.
        after_each: called with every outcome.
    """
    for phase in phases:
        if stop.requested:
            outcome = Outcome("not run", "interrupted before it")
        elif missing := missing_packages(phase.needs):
            outcome = Outcome("skipped", f"not installed: {', '.join(missing)}")
        elif phase.needs_gpu and not has_gpu:
            outcome = Outcome("skipped", "needs a GPU")
        else:
            left = ends_at - time.monotonic() - GRACE_S - 1.0
            outcome = start(phase, min(phase.limit_s, left)) if left >= LEAST_S else Outcome("not run", "no time left")
        outcomes[phase.name] = outcome
        after_each(phase, outcome)


def missing_packages(names: Sequence[str]) -> list[str]:
    """Those that cannot be found, without importing any."""
    return [name for name in names if find_spec(name) is None]


def run_phase(
    phase: Phase, limit_s: float, *, setting: Setting, log: Path, environment: dict[str, str], stop: StopRequest
) -> Outcome:
    """Run one phase to its end, its limit or a request to stop. No process of its group is left.

    Args:
        phase: to run.
        limit_s: seconds it may take.
        setting: what it is told; the limit is replaced.
        log: its output is appended there.
        environment: of its process.
        stop: looked at while it runs.
    """
    record = setting.scratch / f"{phase.name}.json"
    scratch = setting.scratch / phase.name
    scratch.mkdir()
    told = (str(record), setting.size, f"{limit_s:.1f}", str(scratch), str(setting.root))
    command = [sys.executable, "-m", "gpu_check_parts.child", phase.module, *told]
    with log.open("ab") as output:
        output.write(f"\n=== {phase.name}: {phase.what}\n".encode())
        output.flush()
        began_at, began = output.tell(), time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=scratch,
            start_new_session=True,  # a group of its own, which Ctrl-C in the terminal does not reach
        )
        status = _wait(process, began + limit_s, stop)
        end_group(process)
    lines = [] if status == "passed" else last_lines(log, began_at)
    outcome = Outcome(
        status,
        reason="" if status == "passed" else _reason(status, process.returncode, limit_s, lines),
        seconds=time.monotonic() - began,
        limit_s=limit_s,
        last_lines=lines,
    )
    read_record(record, outcome)
    return outcome


def _wait(process: subprocess.Popen[bytes], ends_at: float, stop: StopRequest) -> Status:
    while process.poll() is None:
        if stop.requested:
            return "interrupted"
        if time.monotonic() > ends_at:
            return "timed out"
        time.sleep(POLL_S)
    return "passed" if process.returncode == 0 else "failed"


def read_record(path: Path, outcome: Outcome) -> None:
    """Add what a phase wrote down; nothing where it did not come that far."""
    with suppress(FileNotFoundError):
        told = json.loads(path.read_text(encoding="utf-8"))
        outcome.figures, outcome.checks = told["figures"], told["checks"]
        broken = [f"{check['what']}: {check['found']}" for check in outcome.checks if not check["holds"]]
        if outcome.status == "failed" and broken:
            outcome.reason = "; ".join(broken)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child and everything it started: ask, wait `GRACE_S`, kill."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _signal_group(process.pid, number):
            break
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and _group_lives(process):
            time.sleep(POLL_S)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # a child that has ended is in its group until it was waited for
    return _signal_group(process.pid, 0) and any(_is_alive(pid) for pid in _group_members(process.pid))


def _signal_group(group: int, number: int) -> bool:
    """Whether the group is still there."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _group_members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if os.getpgid(int(entry.name)) == group:
                    members.append(int(entry.name))
    return members


def _is_alive(pid: int) -> bool:
    """Whether it runs; an orphan that nobody waits for is a zombie for ever in some containers."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


def last_lines(log: Path, start: int) -> list[str]:
    """The end of what was written to `log` from the byte `start` on."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - LAST_LINES * 4 * LONGEST_LINE))
        text = file.read().decode(errors="replace")
    lines = [line.rstrip()[:LONGEST_LINE] for line in text.splitlines() if line.strip()]
    return lines[-LAST_LINES:]


def _reason(status: Status, code: int, limit_s: float, lines: Sequence[str]) -> str:
    if status == "timed out":
        return f"ran past its limit of {limit_s:.0f} s and was killed"
    if status == "interrupted":
        return "interrupted"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    last = lines[-1].strip() if lines else "it said nothing"
    return last if code == CHECK_FAILED else f"exit code {code}: {last}"
