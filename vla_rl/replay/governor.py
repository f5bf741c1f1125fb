"""Holds decisions consumed per decision collected: what makes a run fresh or stale on purpose, on any machine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Governor:
    """Two limits from one ratio; whoever is ahead waits.

    With c decisions consumed since the warm-up:

        learn    while   c <= replay_ratio · (collected − warm_up)
        collect  while   collected < warm_up + (c + batch) / replay_ratio + slack

    Where collection has stopped, learning is allowed: the two never wait for each other.
    """

    replay_ratio: float  # decisions consumed per decision collected
    warm_up: int  # decisions collected before the first batch; they are not counted in the ratio
    consumed_before: int  # decisions consumed before that (by the run that is resumed)
    batch: int  # decisions of one full batch
    slack: int  # decisions that may be in flight, at least one per env slot

    def may_learn(self, *, collected: int, consumed: int) -> bool:
        """Whether the next batch may be consumed now."""
        return consumed - self.consumed_before <= self.replay_ratio * (collected - self.warm_up)

    def allowed_decisions(self, *, consumed: int) -> int:
        """How many decisions may have been collected in all, given what was consumed."""
        ahead = math.ceil((consumed - self.consumed_before + self.batch) / self.replay_ratio)
        return self.warm_up + ahead + self.slack
