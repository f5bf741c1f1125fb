"""Duration of a study: estimated before it starts, and from its own jobs while it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one job in bytes; 0: not estimated."""

    host: int = 0
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected cost of one job; its seconds are of a busy 2-core cloud machine, others differ by a factor."""

    start: float  # imports and warm-up: until the work itself begins
    training: float  # the work itself: all updates or episodes
    cores: int = 1  # that the job keeps busy
    memory: Memory = Memory()

    @property
    def seconds(self) -> float:
        """Return the seconds from start to end."""
        return self.start + self.training

    def done(self, share: float) -> float:
        """Return the seconds after which this share of the work is done; 0 for none."""
        return self.start + share * self.training if share > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Underway:
    """Progress of a running job."""

    expected: Expected
    seconds: float  # since its start
    share: float  # share of its work


def minutes_left(
    ended: Iterable[Underway], running: Sequence[Underway], waiting: Sequence[Expected], *, jobs: int
) -> float:
    """Return the minutes until the last job ends, from this machine's ratio of measured to expected time.

    Args:
        ended: jobs that finished in this call, with a share of 1.
        running: those that run now.
        waiting: those that have not begun.
        jobs: jobs of one core at once.
    """
    told = [each for each in (*ended, *running) if each.share > 0]
    expected = sum(each.expected.done(each.share) for each in told)
    pace = sum(each.seconds for each in told) / expected if expected > 0 else 1.0
    left = [(each.expected.seconds - each.expected.done(each.share), each.expected.cores) for each in running]
    left += [(each.seconds, each.cores) for each in waiting]
    at_once = sum(seconds * min(cores, jobs) for seconds, cores in left) / jobs
    return pace * max(at_once, max((seconds for seconds, _ in left), default=0.0)) / 60
