from hypothesis import given
from hypothesis import strategies as st

from vla_rl.replay.governor import Account, Governor


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


def go_on(account, **changes):
    values = {"replay_ratio": 4.0, "collected": 0, "consumed": 1000, "batch": 64, "slack": 2} | changes
    return Governor.go_on(account, **values)


def test_a_resumed_run_owes_the_decisions_that_the_run_before_owed():
    account = make().account(collected=116, consumed=128)  # 16 collected since the warm-up, 128 / 4 = 32 were owed
    assert account == Account(4.0, collected=16, consumed=128)
    resumed = go_on(account)
    assert not resumed.may_learn(collected=15, consumed=1000)
    assert resumed.may_learn(collected=16, consumed=1000)
    assert resumed.allowed_decisions(consumed=1000) == (128 + 64) / 4 - 16 + 2
    assert resumed.account(collected=20, consumed=1064) == Account(4.0, collected=36, consumed=192)


def test_a_second_warm_up_is_not_counted_either():
    resumed = go_on(Account(4.0, collected=16, consumed=128), collected=50)
    assert not resumed.may_learn(collected=65, consumed=1000)
    assert resumed.may_learn(collected=66, consumed=1000)


def test_under_another_ratio_the_lead_stays_and_the_past_is_not_weighed_anew():
    ahead = Account(4.0, collected=40, consumed=128).under(8.0)  # 40 - 128 / 4 = 8 ahead
    assert ahead == Account(8.0, collected=8, consumed=0)
    behind = go_on(Account(4.0, collected=16, consumed=128), replay_ratio=8.0)  # 16 behind
    assert not behind.may_learn(collected=15, consumed=1000)
    assert behind.may_learn(collected=16, consumed=1000)


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
