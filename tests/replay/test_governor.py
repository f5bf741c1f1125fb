from hypothesis import given
from hypothesis import strategies as st

from vla_rl.replay.governor import Governor


def make(**changes):
    return Governor(**({"replay_ratio": 4.0, "warm_up": 100, "consumed_before": 0, "batch": 64, "slack": 2} | changes))


def test_learning_waits_until_the_ratio_allows_the_next_batch():
    assert not make().may_learn(collected=99, consumed=0)
    assert make().may_learn(collected=100, consumed=0)
    assert not make().may_learn(collected=115, consumed=64)  # 64 / 4 = 16 more decisions are needed
    assert make().may_learn(collected=116, consumed=64)


def test_collection_stops_one_batch_and_the_slack_ahead():
    assert make().allowed_decisions(consumed=0) == 100 + 16 + 2
    assert make().allowed_decisions(consumed=64) == 100 + 32 + 2


def test_what_a_resumed_run_consumed_before_does_not_count():
    resumed = make(consumed_before=1000)
    assert resumed.may_learn(collected=116, consumed=1064)
    assert not resumed.may_learn(collected=115, consumed=1064)
    assert resumed.allowed_decisions(consumed=1064) == 100 + 32 + 2


@given(
    ratio=st.floats(0.01, 200.0),
    batch=st.integers(1, 5000),
    slack=st.integers(1, 64),
    warm_up=st.integers(1, 1000),
    consumed=st.integers(0, 10**7),
)
def test_the_two_sides_never_wait_for_each_other(ratio, batch, slack, warm_up, consumed):
    governor = make(replay_ratio=ratio, warm_up=warm_up, batch=batch, slack=slack)
    collected = governor.allowed_decisions(consumed=consumed)  # collection has stopped
    assert governor.may_learn(collected=collected, consumed=consumed)
