"""Signs of life of the inference worker."""

import time

from vla_rl.ipc.counters import CellCounters
from vla_rl.workers.inference_worker import beating


def test_a_worker_inside_a_long_call_gives_signs_of_life_until_its_time_is_up():
    with CellCounters.create(num_env_workers=1) as counters:
        counters.set("inference_heartbeat", 0.0)
        with beating(counters, at_most_s=60.0):
            deadline = time.monotonic() + 30.0
            while counters.get("inference_heartbeat") == 0.0:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        counters.set("inference_heartbeat", 0.0)
        with beating(counters, at_most_s=-1.0):
            time.sleep(0.6)
        assert counters.get("inference_heartbeat") == 0.0
