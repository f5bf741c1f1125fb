"""Curves of a run in bounded memory, from a `metrics.jsonl` that is read once and followed as it grows.

A run of days writes more log points than a page has pixels. When there are too many, each two neighbours are joined:
a point then stands for `stride` log points, with their mean, lowest and highest value, so that no spike is lost.
"""

from __future__ import annotations

import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_rl.files import ordinary
from vla_rl.reporting.metrics_file import CLOCK_NAMES, is_number, parse_point
from vla_rl.reporting.series import value_of

MOST_POINTS = 1200  # even
READ_BYTES = 2 << 20  # at most, in one call
LONGEST_LINE = 1 << 20  # bytes; a longer one is no log point
_OVERLAP = 64  # bytes before the place reached, by which another file of the same name is recognised


@dataclass(slots=True)
class Curve:
    """One metric: a value for each point of the curves, NaN where it has none."""

    mean: list[float] = field(default_factory=list)
    count: list[int] = field(default_factory=list)  # log points with a value
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def append(self) -> None:
        """Add a point without a value."""
        self.mean.append(math.nan)
        self.count.append(0)
        self.low.append(math.nan)
        self.high.append(math.nan)

    def add(self, value: float, *, count: int = 1, low: float | None = None, high: float | None = None) -> None:
        """Join values with the last point."""
        low, high, before = value if low is None else low, value if high is None else high, self.count[-1]
        first = before == 0
        self.count[-1] = before + count
        self.mean[-1] = value if first else self.mean[-1] + (value - self.mean[-1]) * count / self.count[-1]
        self.low[-1] = low if first else min(self.low[-1], low)
        self.high[-1] = high if first else max(self.high[-1], high)


class Curves:
    """Curves of all metrics over all clocks."""

    def __init__(self, names: Iterable[str], *, most_points: int = MOST_POINTS) -> None:
        """Create empty curves.

        Args:
            names: metrics that are kept.
            most_points: points that are kept, even; from half of them to all once a run has so many.
        """
        self._most = most_points
        self._names = tuple(names)
        self.clear()

    def clear(self) -> None:
        """Forget all points."""
        self.stride = 1
        self.generation = secrets.token_hex(4)  # another one once points that a page has were changed
        self.clocks: dict[str, list[float]] = {name: [] for name in CLOCK_NAMES}
        self.curves = {name: Curve() for name in self._names}
        self._in_last = 0  # log points that are joined in the last point

    def __len__(self) -> int:
        return len(self.clocks["seconds"])

    def add(self, point: Mapping[str, Any]) -> None:
        """Add a log point."""
        if self._in_last in (0, self.stride):
            if len(self) == self._most:
                self._halve()
            for clock in self.clocks.values():
                clock.append(0.0)
            for curve in self.curves.values():
                curve.append()
            self._in_last = 0
        self._in_last += 1
        for name, clock in self.clocks.items():
            clock[-1] = point[name]
        for name, curve in self.curves.items():
            value = value_of(point, name)
            if is_number(value):
                curve.add(float(value))

    def _halve(self) -> None:
        """Join each two neighbours."""
        self.stride *= 2
        self.generation = secrets.token_hex(4)
        self.clocks = {name: clock[1::2] for name, clock in self.clocks.items()}
        for name, curve in self.curves.items():
            joined = Curve()
            for index, (mean, count, low, high) in enumerate(
                zip(curve.mean, curve.count, curve.low, curve.high, strict=True)
            ):
                if index % 2 == 0:
                    joined.append()
                if count:
                    joined.add(mean, count=count, low=low, high=high)
            self.curves[name] = joined

    def since(self, generation: str, num_points: int) -> dict[str, Any]:
        """Return what a page lacks, as JSON values.

        Args:
            generation: of the points that the page has.
            num_points: how many it has; the last of them may have changed.

        Returns:
            `generation`, `stride`, `first` (the index from which the points replace or extend those of the page),
            `clocks`, and for each metric that has a value anywhere `mean`, and where points are joined `low`, `high`.
        """
        first = max(0, min(num_points, len(self)) - 1) if generation == self.generation else 0
        parts = ("mean",) if self.stride == 1 else ("mean", "low", "high")
        return {
            "generation": self.generation,
            "stride": self.stride,
            "first": first,
            "clocks": {name: [_short(value) for value in clock[first:]] for name, clock in self.clocks.items()},
            "metrics": {
                name: {part: [_short(value) for value in getattr(curve, part)[first:]] for part in parts}
                for name, curve in self.curves.items()
                if any(curve.count)
            },
        }


def _short(value: float) -> float | None:
    """Return a number with six significant digits, which are more than a curve shows; None for NaN."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(f"{value:.6g}")


class MetricsFollower:
    """Reader of a `metrics.jsonl` that returns each log point once, and notices when the file was written anew.

    A run that is resumed writes the file anew, without the log points after its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()
        self._size = 0

    def _forget(self) -> None:
        self._reached = 0  # bytes that were read, up to the end of a line
        self._before = b""  # the bytes before that
        self._skips = False  # inside a line that is too long
        self.num_broken = 0  # lines that are no log points

    @property
    def share_read(self) -> float:
        """Return the share of the file that was read so far, in [0, 1]."""
        return min(1.0, self._reached / self._size) if self._size else 1.0

    def read(self, *, num_bytes: int = READ_BYTES) -> tuple[bool, list[dict[str, Any]]]:
        """Read on.

        Args:
            num_bytes: at most so many; the rest follows with the next call.

        Returns:
            Whether the file was written anew, so that earlier log points no longer count, and the new log points.

        Raises:
            ValueError: there is something else than a file.
            OSError: it cannot be read.
        """
        try:
            stream = ordinary(self._path).open("rb")
        except FileNotFoundError:
            is_anew = self._reached > 0
            self._forget()
            self._size = 0
            return is_anew, []
        with stream:
            self._size = os.fstat(stream.fileno()).st_size
            stream.seek(self._reached - len(self._before))
            is_anew = stream.read(len(self._before)) != self._before
            if is_anew:
                self._forget()
                stream.seek(0)
            return is_anew, self._take(stream.read(num_bytes))

    def _take(self, block: bytes) -> list[dict[str, Any]]:
        """Return the log points of the whole lines of a block."""
        end = block.rfind(b"\n") + 1
        if end == 0 and len(block) >= LONGEST_LINE:
            self.num_broken += not self._skips
            self._skips = True
            end = len(block)
        if end == 0:
            return []
        whole = block[:end]
        self._reached += end
        self._before = (self._before + whole)[-_OVERLAP:]
        lines = whole.split(b"\n")
        if self._skips:
            del lines[0]
            self._skips = not whole.endswith(b"\n")
        points = []
        for line in lines:
            point = parse_point(line) if line.strip() else None
            if point is not None:
                points.append(point)
            else:
                self.num_broken += bool(line.strip())
        return points


class FollowedMetrics:
    """Curves of one run, the newest value of each metric, and what was wrong with its log points."""

    def __init__(self, path: Path, names: Iterable[str], *, scales: Mapping[str, float]) -> None:
        """Follow a `metrics.jsonl`.

        Args:
            path: the file.
            names: metrics whose curves are kept.
            scales: factors by which metrics are multiplied.
        """
        self._follower = MetricsFollower(path)
        self._scales = dict(scales)
        self.curves = Curves(names)
        self._clear()

    def _clear(self) -> None:
        self.curves.clear()
        self.end: dict[str, Any] = {}  # the newest log point
        self.latest: dict[str, float] = {}  # newest value of each metric
        self.nonfinite: Counter[str] = Counter()  # log points at which a metric was not finite
        self._recent: list[tuple[float, float]] = []  # seconds and optimizer steps of recent log points

    @property
    def share_read(self) -> float:
        """Return the share of the file that was read so far, in [0, 1]."""
        return self._follower.share_read

    @property
    def num_broken(self) -> int:
        """Return the number of lines that are no log points."""
        return self._follower.num_broken

    def read(self) -> None:
        """Read on, at most `READ_BYTES`.

        Raises:
            ValueError: there is something else than a file.
            OSError: it cannot be read.
        """
        is_anew, points = self._follower.read()
        if is_anew:
            self._clear()
        for point in points:
            self._add(point)

    def _add(self, point: dict[str, Any]) -> None:
        for name, scale in self._scales.items():
            if is_number(point.get(name)):
                point[name] *= scale
        self.curves.add(point)
        self.end = point
        self.latest |= {name: value for name, value in point.items() if "/" in name and is_number(value)}
        broken = point.get("nonfinite")
        if isinstance(broken, list):
            self.nonfinite.update(name for name in broken if isinstance(name, str))
        self._recent = [*self._recent[-19:], (point["seconds"], point["optimizer_steps"])]

    def seconds_left(self, optimizer_steps: int) -> float | None:
        """Return the time to this optimizer step at the rate of the newest twenty log points; None if there is none."""
        if not self._recent:
            return None
        (began, before), (now, done) = self._recent[0], self._recent[-1]
        rate = (done - before) / (now - began) if now > began else 0.0
        return max(0.0, (optimizer_steps - done) / rate) if rate > 0 else None
