"""The governor makes the regime: the number and pace of env workers do not change how old the samples are."""

import io

import pytest
from rich.console import Console

from vla_rl import train as training
from vla_rl.recipe import build_recipe
from vla_rl.reporting.metrics_file import METRICS_FILE, read_metrics
from vla_rl.reporting.series import closing_mean

RECIPE = """
name: t
env: {name: toy, horizon: 16, chunk_size: 2}
policy: {name: mlp, hidden_dim: 16, num_bins: 8}
surrogate: {name: gipo, sigma: 1.0}
replay: {capacity: 800, min_decisions: 64, segment_length: 8}
learner: {micro_batch: 4}
rollout: {num_workers: 1, envs_per_worker: 4, max_batch: 4}
runtime: {device: cpu, threads_per_process: 1}
budget: {optimizer_steps: 1000}
checkpoint: {every_optimizer_steps: 1000, save_replay: false}
logging: {tensorboard: false}
"""


def lags(tmp_path, name, *overrides):
    """Closing means of lag and old fraction, and the decisions collected."""
    recipe = build_recipe(RECIPE, [f"name={name}", *overrides])
    outcome = training.train(recipe, run_dir=tmp_path / name, resume=False, console=Console(file=io.StringIO()))
    records = read_metrics(tmp_path / name / METRICS_FILE)
    mean, old = (closing_mean(records, f"policy_lag/{metric}") for metric in ("mean", "old_fraction"))
    return mean, old, outcome.clocks.decisions


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["fresh", "stale"])
def test_runs_with_different_workers_have_the_same_lags(tmp_path, regime):
    serial = lags(tmp_path, "serial", f"regime={regime}", "runtime.mode=serial")
    workers = ["rollout.num_workers=2", "rollout.envs_per_worker=2"]
    quick = lags(tmp_path, "quick", f"regime={regime}", *workers)
    slow = lags(tmp_path, "slow", f"regime={regime}", *workers, "env.step_seconds=0.0005")
    for mean, old, decisions in (quick, slow):
        assert mean == pytest.approx(serial[0], rel=0.15)
        assert old == pytest.approx(serial[1], abs=0.05)
        # At the end of warm-up each of the 4 slots may be anywhere in an episode of 8 decisions.
        assert decisions == pytest.approx(serial[2], rel=0.03, abs=2 * 4 * 8)
    if regime == "fresh":
        assert serial[1] == 0.0
    else:
        assert serial[1] == pytest.approx(0.884, abs=0.05)
