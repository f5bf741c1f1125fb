"""Log points and files on their way to trackers, which must neither stop nor slow a run.

Each tracker has a process of its own and, here, a thread that hands it what waits: writing a log point is an append to
a list, whatever the service does. A tracker that fails is reported once, and tried again with the next point; one that
does not answer for `timeout_s` is killed. Nothing is lost to the run: all metrics are in its `metrics.jsonl`.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vla_rl.files import read_json_object
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.metrics_file import Clocks
from vla_rl.reporting.run_folder import RECIPE_FILE, RESULTS_FILE
from vla_rl.reporting.run_layout import EVALUATIONS
from vla_rl.run.tracker_process import Answer, Attachment, End, Message, Point, serve
from vla_rl.tracking import Ending, TrackedRun, Tracker
from vla_rl.workers.process import start_child

RECORDS = "trackers"  # folder of a run with one file for each tracker: what its session is called
REPORT_FILE = "report.html"
MOST_VIDEOS = 8
MOST_WAITING = 1000  # messages; a tracker that is slower than the run loses the newest
_KILL_S = 5.0  # a killed process is gone within this time


class Couriers:
    """All trackers of a run. A sink of log points.

        with Couriers(trackers, run_dir, say=console.print) as couriers:
            couriers.start("toy", recipe, resume=False)
            couriers.write(clocks, {"rollout/success_rate": 0.5})
            couriers.finish("finished", [run_dir / "report.html"])

    Without `finish` the sessions end as interrupted or failed, by the exception that passes.

    Args:
        trackers: settings by the names in a recipe; none: every method does nothing.
        run_dir: the run's folder.
        say: shows a line to the user.
    """

    def __init__(self, trackers: Mapping[str, Tracker], run_dir: Path, *, say: Callable[[str], None]) -> None:
        self._trackers, self._run_dir, self._say = dict(trackers), run_dir.resolve(), say
        self._couriers: list[_Courier] = []
        self._is_finished = False

    def start(self, name: str, recipe: Mapping[str, Any], *, resume: bool) -> None:
        """Open a session of each tracker; returns at once.

        Args:
            name: of the run.
            recipe: every field as plain values.
            resume: go on with the sessions that the run's folder records, where a tracker's destination is the same.

        Raises:
            ValueError: such a record is broken.
        """
        records = {name: self._run_dir / RECORDS / f"{name}.json" for name in self._trackers}
        runs = {
            tracker: TrackedRun(
                name,
                self._run_dir,
                dict(recipe),
                _recorded_identity(record, self._trackers[tracker]) if resume else None,
            )
            for tracker, record in records.items()
        }
        for tracker, run in runs.items():
            self._couriers.append(
                _Courier(
                    tracker,
                    self._trackers[tracker],
                    run,
                    record=records[tracker],
                    log_path=self._run_dir / "logs" / f"tracker_{tracker}.log",
                    say=self._say,
                )
            )

    def write(self, clocks: Clocks, metrics: Mapping[str, float]) -> None:
        """Hand a log point over; never waits."""
        if not self._couriers:
            return
        values = {name: float(value) for name, value in metrics.items()}
        counts = (field.name for field in fields(Clocks) if field.name != "seconds")
        values |= {f"clocks/{name}": float(getattr(clocks, name)) for name in counts}
        for courier in self._couriers:
            courier.send(Point(values, clocks.optimizer_steps, time.time()))

    def closing_files(self) -> list[Path]:
        """Write the run's report; return it with the records and the newest videos of a run that has ended well."""
        if not self._couriers:
            return []
        folder = self._run_dir
        report = folder / REPORT_FILE
        if importlib.util.find_spec("matplotlib") is not None:
            from vla_rl.reporting.report import write_report

            try:
                write_report([folder], report)
            except (ValueError, OSError) as error:
                self._say(f"warning: no report for the trackers: {error}")
        evaluations = folder / EVALUATIONS
        videos = sorted(evaluations.rglob("*.mp4"), key=lambda video: (-video.stat().st_mtime, video.name))
        records = [folder / RECIPE_FILE, folder / MANIFEST_FILE, report, *sorted(evaluations.rglob(RESULTS_FILE))]
        return [file for file in records if file.is_file()] + videos[:MOST_VIDEOS]

    def finish(self, ending: Ending, files: Sequence[Path] = ()) -> None:
        """Send files of the run and end the sessions; wait for that as long as the trackers' settings allow.

        Ctrl-C ends the waiting.

        Args:
            ending: how the run ended.
            files: below the run's folder.
        """
        self._is_finished = True
        try:
            for courier in self._couriers:
                for file in files:
                    # Its name from the path as it was given: a folder of the run may be a link out of it.
                    courier.send(Attachment(file.resolve(), file.relative_to(self._run_dir).as_posix()))
                courier.send_last(End(ending))
            for courier in self._couriers:
                courier.wait()
        except KeyboardInterrupt:
            for courier in self._couriers:
                courier.give_up("it was still sending when it was interrupted")
        finally:
            for courier in self._couriers:
                courier.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_finished:
            self.finish("interrupted" if kind is None or issubclass(kind, KeyboardInterrupt) else "failed")


class _Courier:
    """One tracker, seen from the run."""

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        run: TrackedRun,
        *,
        record: Path,
        log_path: Path,
        say: Callable[[str], None],
    ) -> None:
        self._name, self._tracker, self._log_path, self._say = name, tracker, log_path, say
        context = get_context("spawn")
        inbox, self._outbox = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        self._process = context.Process(
            target=serve,
            args=(name, tracker, run, record, inbox, answers, log_path),
            name=f"tracker_{name}",
            daemon=True,
        )
        start_child(self._process)
        inbox.close()
        answers.close()
        self._waiting: queue.Queue[Message | None] = queue.Queue(MOST_WAITING)
        self._is_over = self._is_reported = self._is_open = False
        self._asked, self._answered = 1, 0  # the opening of the session is asked for by starting the process
        self._heard_at = time.monotonic()
        self._lost = 0
        self._deadline: float | None = None
        threading.Thread(target=_deliver, args=(self._waiting, self._outbox), name=f"to_{name}", daemon=True).start()

    def send(self, message: Message) -> None:
        """Put a message in the queue, or leave it out if the queue is full."""
        self._heed()
        if self._is_over:
            return
        if self._answered == self._asked:
            self._heard_at = time.monotonic()
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._lost += 1
            self._report(f"it is slower than the run: {MOST_WAITING} log points wait, and newer ones are left out")
            return
        self._asked += 1

    def send_last(self, message: End) -> None:
        """Put the last message in the queue, and set the time until which `wait` waits."""
        self._deadline = time.monotonic() + self._tracker.finish_s
        while not self._is_over:
            asked = self._asked
            self.send(message)
            if self._asked > asked:
                return
            self._lost -= 1
            self._listen(0.1)

    def wait(self) -> None:
        """Wait until all messages are answered; give up at the deadline, or without an answer for `timeout_s`."""
        while not self._is_over and self._answered < self._asked:
            self._listen(0.1)
        if self._lost and not self._is_over:
            self._say(f"warning: logging.{self._name}: {self._lost} messages were left out; {_WHERE}")

    def _listen(self, seconds: float) -> None:
        """Wait a moment for an answer, then see what there is."""
        with suppress(EOFError, OSError):
            self._answers.poll(seconds)
        self._heed()
        if not self._is_over and self._deadline is not None and time.monotonic() > self._deadline:
            self.give_up(f"it was still sending after {self._tracker.finish_s:g} s (logging.{self._name}.finish_s)")

    def _heed(self) -> None:
        """Read the answers that came, without waiting."""
        try:
            while not self._is_over and self._answers.poll():
                self._note(self._answers.recv())
        except (EOFError, OSError):
            if self._answered < self._asked:
                self.give_up("its process ended")
        silent = time.monotonic() - self._heard_at
        if not self._is_over and self._answered < self._asked and silent > self._tracker.timeout_s:
            self.give_up(f"no answer for {silent:.0f} s (logging.{self._name}.timeout_s)")

    def _note(self, answer: Answer) -> None:
        self._answered += 1
        self._heard_at = time.monotonic()
        if answer.failure and not self._is_open:
            self.give_up(answer.failure)
            return
        if answer.place:
            self._is_open = True
            self._say(f"{self._name}: {answer.place}")
        if answer.warning is not None:
            self._report(answer.warning, goes_on=True)
        if answer.failure:
            self._lost += 1
            self._report(f"{answer.failure}; it is tried again with the next log point")

    def give_up(self, reason: str) -> None:
        """Kill the process and say why, unless it was killed before."""
        if self._is_over:
            return
        self._is_over, self._is_reported = True, False
        self._report(f"{reason}; nothing more is sent")
        self.kill()

    def _report(self, text: str, *, goes_on: bool = False) -> None:
        """Say what is wrong, once."""
        if not self._is_reported:
            self._is_reported = True
            where = "" if goes_on else f". {_WHERE}; {self._log_path} says more"
            self._say(f"warning: logging.{self._name}: {text}{where}")

    def kill(self) -> None:
        """End the process, and all that the library has started; safe to call twice."""
        self._is_over = True
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            self._process.join(_KILL_S if self._answered == self._asked else 0)
        if pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)  # its session, see `serve`
            self._process.kill()
            self._process.join(_KILL_S)


_WHERE = "The run goes on, and all metrics are in its metrics.jsonl"


def _deliver(waiting: queue.Queue[Message | None], outbox: Connection) -> None:
    """Hand messages to the process, which may be as slow as it likes; ends with None, or with the process."""
    with suppress(OSError), outbox:
        while (message := waiting.get()) is not None:
            outbox.send(message)


def _recorded_identity(record: Path, tracker: Tracker) -> str | None:
    """Return what an earlier session was called; None if there was none, or elsewhere.

    Raises:
        ValueError: the file is broken.
    """
    if not record.is_file():
        return None
    match read_json_object(record):
        case {"identity": str(identity), "destination": dict(destination)}:
            return identity if destination == tracker.destination else None
    raise ValueError(
        f"{record}: expected an object with identity and destination, found something else; remove the file, and a new "
        "tracked run begins"
    )
