"""Rates and shares of time between two moments of a run."""

import pytest

from vla_rl.run.log import Moment, rates


def test_shares_of_time_are_per_env_worker_and_rates_per_second():
    before = Moment(
        seconds=10.0, env_steps=100, decisions=50, consumed=40, learner_wait=1.0, env_wait=2.0, env_held_back=3.0,
        inference_busy=0.0, batches=10, served=20,
    )  # fmt: skip
    now = Moment(
        seconds=14.0, env_steps=180, decisions=90, consumed=360, learner_wait=2.0, env_wait=4.0, env_held_back=9.0,
        inference_busy=0.0, batches=30, served=60,
    )  # fmt: skip
    assert rates(before, now, num_env_workers=2) == pytest.approx(
        {
            "perf/env_steps_per_s": 20.0,
            "perf/decisions_per_s": 10.0,
            "perf/learner_samples_per_s": 80.0,
            "perf/learner_wait_fraction": 0.25,
            "perf/env_wait_fraction": 0.25,  # 2 s of the 8 s that two workers had
            "perf/env_held_back_fraction": 0.75,
            "perf/inference_batch_size": 2.0,
        }
    )
