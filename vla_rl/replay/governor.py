"""Holds decisions consumed per decision collected: what makes a run fresh or stale on purpose, on any machine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """What was collected and consumed since the warm-up, in decisions.

    A checkpoint keeps it: a resumed run that began to count anew would consume one batch without collecting for it.
    """

    replay_ratio: float  # under which it was kept
    collected: int
    consumed: int

    def under(self, replay_ratio: float) -> Account:
        """The same lead of collection under another ratio: what was consumed before is not weighed anew."""
        if replay_ratio == self.replay_ratio:
            return self
        return Account(replay_ratio, math.floor(self.collected - self.consumed / self.replay_ratio), 0)


@dataclass(frozen=True, slots=True)
class Governor:
    """Two limits from one ratio; whoever is ahead waits.

    With c decisions consumed since the warm-up:

        learn    while   c <= replay_ratio · (collected − warm_up)
        collect  while   collected < warm_up + (c + batch) / replay_ratio + slack

    Where collection has stopped, learning is allowed: the two never wait for each other.
    """

    replay_ratio: float  # decisions consumed per decision collected
    warm_up: int  # decisions collected before the first batch, not counted in the ratio; negative: counted beforehand
    consumed_before: int  # decisions consumed that are not counted in the ratio
    batch: int  # decisions of one full batch
    slack: int  # decisions that may be in flight, at least one per env slot

    @classmethod
    def go_on(
        cls, account: Account, *, replay_ratio: float, collected: int, consumed: int, batch: int, slack: int
    ) -> Governor:
        """A governor that goes on with an account from now on, where the counters stand at `collected` and `consumed`.

        Args:
            account: what was counted before; zeros for a new run.
            replay_ratio: decisions consumed per decision collected, from now on.
            collected: decisions collected by now that the account does not hold.
            consumed: decisions consumed by now, those of the account included.
            batch: decisions of one full batch.
            slack: decisions that may be in flight.
        """
        account = account.under(replay_ratio)
        return cls(
            replay_ratio=replay_ratio,
            warm_up=collected - account.collected,
            consumed_before=consumed - account.consumed,
            batch=batch,
            slack=slack,
        )

    def account(self, *, collected: int, consumed: int) -> Account:
        """What was counted so far, where the counters stand at `collected` and `consumed`."""
        return Account(self.replay_ratio, collected - self.warm_up, consumed - self.consumed_before)

    def may_learn(self, *, collected: int, consumed: int) -> bool:
        """Whether the next batch may be consumed now."""
        return consumed - self.consumed_before <= self.replay_ratio * (collected - self.warm_up)

    def allowed_decisions(self, *, consumed: int) -> int:
        """How many decisions may have been collected in all, given what was consumed."""
        ahead = math.ceil((consumed - self.consumed_before + self.batch) / self.replay_ratio)
        return self.warm_up + ahead + self.slack
