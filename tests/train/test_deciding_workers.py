"""Whole runs whose env workers decide themselves (`rollout.inference: local`)."""

import json
import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from toy_runs import run, toy_recipe

pytestmark = pytest.mark.slow

LOCAL = {
    "runtime": {"mode": "async"},
    "rollout": {"num_workers": 2, "envs_per_worker": 2, "max_batch": 2, "inference": "local"},
}


def points(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_has_no_inference_worker_and_its_decisions_carry_the_version_that_made_them(tmp_path):
    """At lag 0 the policy is the one that acted, so weights, sampling and storing belong together."""
    run(toy_recipe(**LOCAL, budget={"optimizer_steps": 40}), tmp_path / "run")
    assert sorted(path.stem for path in (tmp_path / "run" / "logs").glob("*worker*")) == [
        "env_worker_0",
        "env_worker_1",
    ]
    found = points(tmp_path / "run")
    assert found[-1]["optimizer_steps"] == 40
    assert found[0]["ratio/abs_log_p95"] < 1e-5
    assert max(point["ratio/abs_log_p95"] for point in found) > 1e-3
    assert found[-1]["policy_lag/max"] < 40
    sizes = [point["perf/inference_batch_size"] for point in found if point["perf/inference_batch_size"] > 0]
    assert np.median(sizes) == 2.0  # a worker's two slots at once; decisions and batches are not counted in one moment
    run(toy_recipe(**LOCAL, budget={"optimizer_steps": 45}), tmp_path / "run", resume=True)
    assert points(tmp_path / "run")[-1]["optimizer_steps"] == 45


def test_a_killed_worker_is_restarted_and_the_other_goes_on(tmp_path):
    recipe = toy_recipe(
        **LOCAL, env={"step_seconds": 0.002}, budget={"optimizer_steps": 1_000_000},
        checkpoint={"every_optimizer_steps": 1_000_000},
    )  # fmt: skip
    log, has_ended = tmp_path / "run" / "logs" / "env_worker_0.log", threading.Event()

    def wait_until(condition):
        deadline = time.monotonic() + 120
        while not has_ended.is_set() and time.monotonic() < deadline:
            with suppress(OSError, ValueError, IndexError):
                if condition():
                    return
            time.sleep(0.02)

    def kill_once_and_end_the_run_when_it_has_gone_on():
        wait_until(lambda: len(points(tmp_path / "run")) >= 3)
        wait_until(lambda: os.kill(int(log.read_text().split("process ")[1].split()[0]), signal.SIGKILL) is None)
        wait_until(lambda: "start 1 of this worker" in log.read_text())
        steps = len(points(tmp_path / "run"))
        wait_until(lambda: len(points(tmp_path / "run")) >= steps + 20)
        if not has_ended.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=kill_once_and_end_the_run_when_it_has_gone_on)
    killer.start()
    try:
        outcome, _ = run(recipe, tmp_path / "run")
    finally:
        has_ended.set()
        killer.join()
    assert outcome.interrupted
    assert "start 1 of this worker, which decides itself, slots [0, 1]" in log.read_text()
    found = points(tmp_path / "run")
    assert found[-1]["system/env_worker_restarts"] == 1
    assert min(point["perf/inference_batch_size"] for point in found) >= 0  # its counts go on, they never fall
