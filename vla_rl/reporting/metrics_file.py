"""Writer and reader of `metrics.jsonl`: one line per log point. Other sinks, like TensorBoard's, get the same.

A line holds the clocks, then metrics of the catalogue:

    {"env_steps": 640, "decisions": 80, "episodes": 6, "optimizer_steps": 10, "policy_version": 10, "seconds": 12.5,
     "rollout/success_rate": 0.5, "learner/kl": null, "nonfinite": ["learner/kl"]}

`seconds` and the names under `perf/` are the only values that depend on the machine's speed: two serial runs of one
recipe agree in all others. A value that is not finite is written as null and its name is listed in `nonfinite`, because
JSON cannot represent it and a reader must be able to tell "broken" from "absent".
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeGuard

from vla_rl.files import atomic_write_bytes
from vla_rl.reporting.catalogue import require_known

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True, slots=True)
class Clocks:
    """Progress of a run, summed over all ranks. All counts start at 0 and never decrease, except by resuming."""

    env_steps: int = 0  # control steps simulated
    decisions: int = 0  # policy queries whose outcome was collected
    episodes: int = 0  # episodes ended
    optimizer_steps: int = 0  # updates of the parameters
    policy_version: int = 0  # newest published version
    seconds: float = 0.0  # wall-clock seconds of training, including those before a resume


CLOCK_NAMES = tuple(field.name for field in fields(Clocks))  # present in every log point


class MetricsSink(Protocol):
    """Anything that takes log points beside `metrics.jsonl`."""

    def write(self, clocks: Clocks, metrics: Mapping[str, float]) -> None:
        """Take one log point; raises nothing that is the sink's own trouble."""
        ...


class MetricsWriter:
    """Writer of log points. One per run, on rank 0.

        with MetricsWriter(run_dir, tensorboard=True, resume_at=None) as writer:
            writer.write(clocks, {"rollout/success_rate": 0.5})

    Args:
        run_dir: the run's folder; created if it is missing.
        tensorboard: also write events, over optimizer steps, under `tensorboard/`.
        resume_at: clocks of the checkpoint that the run resumes from: log points after its optimizer step are removed,
            because they will be written again. None for a new run.
        sinks: get every log point as well; whoever made them ends them.

    Raises:
        ValueError: a new run finds log points of an earlier one, or a line of the old file is broken.
    """

    def __init__(
        self, run_dir: Path, *, tensorboard: bool, resume_at: Clocks | None, sinks: Sequence[MetricsSink] = ()
    ) -> None:
        self._path = run_dir / METRICS_FILE
        run_dir.mkdir(parents=True, exist_ok=True)
        if resume_at is not None:
            _forget_after(self._path, resume_at.optimizer_steps)
        elif self._path.exists() and self._path.stat().st_size > 0:
            raise ValueError(
                f"{self._path}: a new run needs an empty folder, found log points of an earlier run; resume that run, "
                "or choose another name or folder"
            )
        self._stream = self._path.open("ab", buffering=0)  # one write per point, so a kill truncates only the last
        self._events = _open_events(run_dir, resume_at) if tensorboard else None
        self._sinks = tuple(sinks)

    def write(self, clocks: Clocks, metrics: Mapping[str, float]) -> None:
        """Append one log point.

        Args:
            clocks: progress of the run.
            metrics: values by catalogue name, in the catalogue's units.

        Raises:
            ValueError: a name is not in the catalogue.
            OSError: the disk is full; the file is unchanged, and no more events are written.
        """
        require_known(metrics)
        for sink in self._sinks:  # first: what is not on this disk survives a full one
            sink.write(clocks, metrics)
        nonfinite = [name for name, value in metrics.items() if not math.isfinite(value)]
        record: dict[str, Any] = asdict(clocks)
        record |= {name: None if name in nonfinite else _plain(value) for name, value in metrics.items()}
        if nonfinite:
            record["nonfinite"] = nonfinite
        try:
            self._append(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except OSError:
            self._drop_events()  # events go to the same disk
            raise
        if self._events is not None:
            self._write_events(self._events, clocks, metrics)

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        self._stream.close()
        if self._events is not None:
            self._events.close()

    def _append(self, line: bytes) -> None:
        """Append a whole line or nothing."""
        end = self._stream.seek(0, os.SEEK_END)
        try:
            written = self._stream.write(line)
        except OSError:
            self._stream.truncate(end)
            raise
        if written != len(line):
            self._stream.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def _drop_events(self) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()
            self._events = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_events(self, events: SummaryWriter, clocks: Clocks, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name, value, clocks.optimizer_steps)
        for name in ("env_steps", "decisions", "episodes", "policy_version"):
            events.add_scalar(f"clocks/{name}", getattr(clocks, name), clocks.optimizer_steps)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read all log points of a `metrics.jsonl`, oldest first.

    A truncated last line (its process was killed) is left out.

    Args:
        path: the file.

    Returns:
        One dictionary per line: clocks, metrics (None where a value was not finite), and `nonfinite` if there are any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line other than the last is not a log point.
    """
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        record = parse_point(line)
        if record is not None:
            records.append(record)
        elif line.strip() and number < len(lines):
            raise ValueError(
                f"{path}, line {number}: expected a JSON object with {', '.join(CLOCK_NAMES)}, found {line[:60]!r}; "
                "remove the line to continue without that log point"
            )
    return records


def parse_point(line: bytes) -> dict[str, Any] | None:
    """Return the log point that a line holds; None if it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # includes UnicodeDecodeError; thousands of brackets
        return None
    if not isinstance(record, dict):
        return None
    return record if all(is_number(record.get(name)) for name in CLOCK_NAMES) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a JSON value is a finite number. Python reads NaN, and 1e999 as infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _forget_after(path: Path, optimizer_steps: int) -> None:
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["optimizer_steps"] <= optimizer_steps]
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n" for record in kept]
    atomic_write_bytes(path, b"".join(lines))


def _open_events(run_dir: Path, resume_at: Clocks | None) -> SummaryWriter:
    # Importing tensorboard takes a second, so only runs that use it import it.
    from torch.utils.tensorboard import SummaryWriter

    purge = None if resume_at is None else resume_at.optimizer_steps + 1
    return SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=purge)


def _plain(value: float) -> float | int:
    """Convert NumPy and torch scalars to JSON numbers; counts stay integers."""
    return int(value) if isinstance(value, int) else float(value)
