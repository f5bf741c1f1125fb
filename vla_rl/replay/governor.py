"""Control of the replay ratio (decisions consumed per decision collected), which sets data age on any machine."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Account:
    """Decisions collected and consumed since the warm-up.

    A checkpoint stores it: a resumed run that started counting from 0 would consume one batch without collecting for
    it.
    """

    replay_ratio: float  # the ratio under which it was counted
    collected: int
    consumed: int

    def under(self, replay_ratio: float) -> Account:
        """Convert to another ratio with the same lead of collection: earlier consumption is not weighted again."""
        if replay_ratio == self.replay_ratio:
            return self
        return Account(replay_ratio, math.floor(self.collected - self.consumed / self.replay_ratio), 0)


@dataclass(frozen=True, slots=True)
class Governor:
    """Two limits from one ratio; the side that is ahead waits.

    With c decisions consumed since the warm-up:

        learn    while   c <= replay_ratio · (collected − warm_up)
        collect  while   collected < warm_up + (c + batch) / replay_ratio + slack

    Where collection has stopped, learning is allowed, so the two never wait for each other.
    """

    replay_ratio: float  # decisions consumed per decision collected
    warm_up: int  # decisions collected before the first batch, not counted in the ratio; negative: counted in advance
    consumed_before: int  # decisions consumed that are not counted in the ratio
    batch: int  # decisions of one full batch
    slack: int  # decisions that may be in flight, at least one per env slot

    @classmethod
    def go_on(
        cls, account: Account, *, replay_ratio: float, collected: int, consumed: int, batch: int, slack: int
    ) -> Governor:
        """Return a governor that continues an account, with the counters at `collected` and `consumed`.

        Args:
            account: earlier counts; zeros for a new run.
            replay_ratio: decisions consumed per decision collected, from now on.
            collected: decisions collected so far that the account does not include.
            consumed: decisions consumed so far, including those of the account.
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
        """Return the account with the counters at `collected` and `consumed`."""
        return Account(self.replay_ratio, collected - self.warm_up, consumed - self.consumed_before)

    def may_learn(self, *, collected: int, consumed: int) -> bool:
        """Return whether the next batch may be consumed now."""
        return consumed - self.consumed_before <= self.replay_ratio * (collected - self.warm_up)

    def allowed_decisions(self, *, consumed: int) -> int:
        """Return the total number of decisions that may have been collected, given those consumed."""
        ahead = math.ceil((consumed - self.consumed_before + self.batch) / self.replay_ratio)
        return self.warm_up + ahead + self.slack
