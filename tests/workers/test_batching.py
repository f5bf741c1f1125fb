from vla_rl.workers.batching import Batcher


def make(max_batch=4, max_wait_s=0.01, open_slots=8):
    return Batcher(max_batch=max_batch, max_wait_s=max_wait_s, open_slots=open_slots)


def test_nothing_leaves_while_nobody_waits():
    assert make().seconds_left(5.0) is None


def test_a_full_batch_leaves_at_once_and_the_rest_stays():
    batcher = make()
    batcher.add(0, 0, [0, 1, 2], now=1.0)
    batcher.add(1, 0, [3, 4], now=1.001)
    assert batcher.seconds_left(1.001) == 0.0
    assert batcher.take(1.001) == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (1, 0, 3)]
    assert batcher.take(1.001) == [(1, 0, 4)]


def test_a_started_batch_waits_no_longer_than_its_bound():
    batcher = make()
    batcher.add(0, 0, [0], now=1.0)
    assert abs(batcher.seconds_left(1.004) - 0.006) < 1e-12
    assert batcher.seconds_left(1.02) == 0.0


def test_it_does_not_wait_when_every_slot_of_the_cell_waits_already():
    batcher = make(max_batch=32, open_slots=2)
    batcher.add(0, 0, [0], now=1.0)
    assert batcher.seconds_left(1.0) > 0.0
    batcher.add(1, 0, [1], now=1.0)
    assert batcher.seconds_left(1.0) == 0.0


def test_it_does_not_wait_for_slots_that_have_run_out_of_jobs():
    batcher = make(max_batch=32, open_slots=2)
    batcher.add(0, 0, [0], now=1.0)
    batcher.open_slots = 1  # the other one's last episode has ended
    assert batcher.seconds_left(1.0) == 0.0


def test_requests_of_a_dead_worker_are_replaced_by_those_of_its_successor():
    batcher = make()
    batcher.add(0, 0, [0, 1], now=1.0)
    batcher.add(1, 0, [2], now=1.0)
    batcher.add(0, 1, [0], now=1.1)
    assert batcher.take(1.1) == [(1, 0, 2), (0, 1, 0)]
