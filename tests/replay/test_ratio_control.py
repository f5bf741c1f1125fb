"""What env workers may collect and the learner may consume, in numbers of one cell."""

from collections.abc import Iterator
from typing import cast

import pytest

from vla_rl.ipc.counters import CellCounters
from vla_rl.replay.ratio_control import UNLIMITED, RatioControl
from vla_rl.replay.sampler import SegmentSampler


class FakeSampler:
    """A ring of which only two numbers are known."""

    def __init__(self) -> None:
        self.num_decisions, self.num_unused = 0, 0
        self.newly_unused = 0  # found by the next refresh

    def refresh(self) -> None:
        self.num_unused, self.newly_unused = self.num_unused + self.newly_unused, 0


class Cell:
    """Four decisions are consumed per decision collected; the warm-up takes 16, a batch 64, and 2 may be in flight."""

    def __init__(self, counters: CellCounters) -> None:
        self._counters, self.sampler = counters, FakeSampler()
        self.ratio = RatioControl(
            counters, cast(SegmentSampler, self.sampler), replay_ratio=4.0, min_decisions=16, batch=64, slack=2
        )

    def collect(self, decisions: int, *, unused: int = 0, consumed: int) -> None:
        self._counters.add("env_worker_decisions", decisions)
        self.sampler.num_decisions += decisions - unused
        self.sampler.newly_unused += unused
        self.ratio.refresh(consumed=consumed)

    @property
    def allowed(self) -> int | float:
        return self._counters.get("allowed_decisions")


@pytest.fixture
def cell() -> Iterator[Cell]:
    with CellCounters.create(num_env_workers=1) as counters:
        yield Cell(counters)


def test_a_warm_up_limits_nobody_and_what_it_collects_counts_for_nothing(cell: Cell) -> None:
    cell.ratio.start(consumed=0)
    cell.collect(15, consumed=0)
    assert not cell.ratio.may_learn(consumed=0)
    assert (cell.ratio.is_warm, cell.allowed) == (False, UNLIMITED)
    cell.collect(5, consumed=0)
    assert cell.ratio.may_learn(consumed=0)
    assert (cell.ratio.is_warm, cell.allowed) == (True, 20 + 64 / 4 + 2)
    assert not cell.ratio.may_learn(consumed=64)
    cell.collect(16, consumed=64)
    assert cell.ratio.may_learn(consumed=64)


def test_collection_makes_up_for_decisions_of_which_nothing_is_learned(cell: Cell) -> None:
    cell.ratio.start(consumed=0)
    cell.collect(20, consumed=0)
    assert cell.ratio.may_learn(consumed=0)
    cell.collect(16, unused=6, consumed=64)  # ten of the 16 decisions that the batch owes
    assert cell.allowed == 20 + (64 + 64) / 4 + 2 + 6
    assert not cell.ratio.may_learn(consumed=64)
    cell.collect(6, consumed=64)
    assert cell.ratio.may_learn(consumed=64)
    assert cell.ratio.state_dict(consumed=64) == {"replay_ratio": 4.0, "collected": 16, "consumed": 64}


def test_nobody_makes_up_for_the_unused_decisions_of_a_loaded_ring(cell: Cell) -> None:
    cell.sampler.num_decisions, cell.sampler.newly_unused = 16, 9
    cell.ratio.start(consumed=0)
    assert cell.allowed == 64 / 4 + 2
    cell.ratio.refresh(consumed=0)
    assert cell.allowed == 64 / 4 + 2
    cell.collect(16, consumed=64)
    assert cell.ratio.may_learn(consumed=64)


def test_without_an_eligible_segment_there_is_no_limit_until_there_is_one(cell: Cell) -> None:
    cell.sampler.num_decisions = 16
    cell.ratio.start(consumed=0)
    cell.ratio.lift()
    cell.collect(3, consumed=0)
    assert cell.allowed == UNLIMITED
    cell.ratio.limit(consumed=0)
    assert cell.allowed == 64 / 4 + 2


def test_a_resumed_run_pays_what_the_run_before_owed_before_it_learns(cell: Cell) -> None:
    cell.ratio.load_state_dict({"replay_ratio": 4.0, "collected": 16, "consumed": 128})  # 128 / 4 - 16 are owed
    cell.sampler.num_decisions = 100
    cell.ratio.start(consumed=1000)
    assert cell.allowed == 16 + 64 / 4 + 2  # before anything is collected
    cell.collect(15, consumed=1000)
    assert not cell.ratio.may_learn(consumed=1000)
    cell.collect(1, consumed=1000)
    assert cell.ratio.may_learn(consumed=1000)
    cell.collect(4, consumed=1064)
    assert cell.ratio.state_dict(consumed=1064) == {"replay_ratio": 4.0, "collected": 36, "consumed": 192}


def test_a_run_that_ends_in_its_warm_up_hands_on_the_account_that_it_was_given(cell: Cell) -> None:
    owed = {"replay_ratio": 2.0, "collected": 16, "consumed": 128}
    cell.ratio.load_state_dict(owed)
    cell.ratio.start(consumed=128)
    cell.collect(5, consumed=128)
    assert cell.ratio.state_dict(consumed=128) == owed
