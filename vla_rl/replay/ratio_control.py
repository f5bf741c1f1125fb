"""Replay ratio of a running cell: what counts as collected, and how much more its env workers may collect."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vla_rl.ipc.counters import CellCounters
from vla_rl.replay.governor import Account, Governor
from vla_rl.replay.sampler import SegmentSampler

UNLIMITED = 2**62  # decisions; during warm-up, and while nothing eligible is in the ring


class RatioControl:
    """Governor of a cell, between its counters and its learner.

        decisions of the env workers ─┐
        those that are never used    ─┼─► may_learn ─► learner
        decisions consumed           ─┘   limit     ─► env workers, through `allowed_decisions`

    Until the ring holds enough for the first batch (the warm-up), nobody is limited. `consumed` is always the decisions
    that this rank has consumed since the run's first start; collection is counted since this one.

    Args:
        counters: of the cell.
        sampler: of its ring.
        replay_ratio: decisions consumed per decision collected.
        min_decisions: decisions in the ring that end the warm-up.
        batch: decisions of one full batch.
        slack: decisions that may be in flight, at least one per env slot.
    """

    def __init__(
        self,
        counters: CellCounters,
        sampler: SegmentSampler,
        *,
        replay_ratio: float,
        min_decisions: int,
        batch: int,
        slack: int,
    ) -> None:
        self._counters, self._sampler = counters, sampler
        self._replay_ratio, self._min_decisions = replay_ratio, min_decisions
        self._batch, self._slack = batch, slack
        self._account = Account(replay_ratio, collected=0, consumed=0)  # until the warm-up has ended
        self._governor: Governor | None = None  # from then on

    def start(self, *, consumed: int) -> None:
        """Begin to count; a resumed run whose ring holds enough is limited before it collects anything."""
        self.lift()
        self._sampler.refresh()  # first: nobody makes up for unused decisions that a loaded ring brought along
        self._end_warm_up(consumed)

    @property
    def is_warm(self) -> bool:
        """Return whether the warm-up is over."""
        return self._governor is not None

    def refresh(self, *, consumed: int) -> None:
        """Take note of new episodes; collection must make up for those that nothing is learned from."""
        unused = self._sampler.num_unused
        self._sampler.refresh()
        if self.is_warm and self._sampler.num_unused != unused:
            self.limit(consumed=consumed)

    def may_learn(self, *, consumed: int) -> bool:
        """Return whether warm-up is over and the governor allows a batch."""
        governor = self._governor or self._end_warm_up(consumed)
        return governor is not None and governor.may_learn(collected=self._collected, consumed=consumed)

    def limit(self, *, consumed: int) -> None:
        """Let env workers collect as far ahead as the governor allows, once the warm-up is over."""
        assert self._governor is not None
        allowed = self._governor.allowed_decisions(consumed=consumed) + self._sampler.num_unused
        self._counters.set("allowed_decisions", allowed)

    def lift(self) -> None:
        """Let env workers collect without limit, until the next one."""
        self._counters.set("allowed_decisions", UNLIMITED)

    def state_dict(self, *, consumed: int) -> dict[str, Any]:
        """Return the account up to now, JSON-serialisable."""
        if self._governor is None:
            return asdict(self._account)
        return asdict(self._governor.account(collected=self._collected, consumed=consumed))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the account of a checkpoint, before `start`."""
        self._account = Account(**state)

    @property
    def _collected(self) -> int:
        """Return the decisions since this start, without those that will be in no batch, also of a loaded ring."""
        return int(self._counters.total("env_worker_decisions")) - self._sampler.num_unused

    def _end_warm_up(self, consumed: int) -> Governor | None:
        """Start controlling the ratio, if the ring holds enough; a resumed run continues its checkpoint's account."""
        if self._sampler.num_decisions < self._min_decisions:
            return None
        self._governor = Governor.go_on(
            self._account,
            replay_ratio=self._replay_ratio,
            collected=self._collected,
            consumed=consumed,
            batch=self._batch,
            slack=self._slack,
        )
        self.limit(consumed=consumed)
        return self._governor
