"""Runs of a policy with Gaussian actions: acting, storing, learning with the exact KL, resuming, evaluating."""

import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from toy_runs import metrics, run, toy_recipe

GAUSSIAN = {
    "policy": {"distribution": "gaussian", "state_dependent_std": False, "initial_std": 0.6, "output_scale": 0.01},
    "loss": {"kl_coefficient": 0.1},
    "evaluation": {"episodes_per_task": 2},
}


@pytest.mark.parametrize("mode", ["serial", pytest.param("async", marks=pytest.mark.slow)])
def test_a_gaussian_with_one_deviation_for_each_component_trains_resumes_and_is_evaluated(tmp_path, mode):
    recipe = GAUSSIAN | {"runtime": {"mode": mode}}
    run(toy_recipe(**recipe), tmp_path / "run")
    outcome, _ = run(toy_recipe(**recipe, budget={"optimizer_steps": 9}), tmp_path / "run", resume=True)
    points = metrics(tmp_path / "run")
    assert [point["optimizer_steps"] for point in points] == list(range(1, 10))
    # Nats of a component: ln(0.6 √(2πe)). At lag 0 the policy is the one that acted.
    assert points[0]["learner/entropy"] == pytest.approx(math.log(0.6) + 0.5 * math.log(2 * math.pi * math.e))
    assert points[0]["ratio/abs_log_p95"] < 1e-4
    assert abs(points[0]["learner/kl"]) < 1e-6 < points[-1]["learner/kl"]
    assert outcome.evaluation is not None

    weights = load_file(outcome.checkpoint / "policy.safetensors")
    assert weights["width"].shape == (4,) and abs(weights["width"] - weights["width"][0]).max() > 0  # it was trained
    ring = load_file(next(outcome.checkpoint.rglob("ring.safetensors")))
    assert ring["tokens"].dtype == "float32"
    assert ring["logits"].shape[1:] == (4, 2)  # mean and log deviation are all that is stored of a density
    made = np.isfinite(ring["logprobs"]).all(axis=1)  # an episode's last row has no decision
    assert abs(ring["tokens"][made]).max() > 1.0  # as drawn: clipped only on their way to the environment
    first = made & (ring["policy_version"] == 0)
    tokens, logprobs = ring["tokens"][first], ring["logprobs"][first]
    mean, log_std = np.moveaxis(ring["logits"][first], -1, 0)
    assert len(tokens) >= 8
    assert np.exp(log_std) == pytest.approx(0.6)
    expected = -0.5 * ((tokens - mean) / 0.6) ** 2 - math.log(0.6) - 0.5 * math.log(2 * math.pi)
    assert logprobs == pytest.approx(expected, abs=1e-5)


def test_two_resumes_of_one_checkpoint_are_the_same_bit_for_bit(tmp_path):
    run(toy_recipe(**GAUSSIAN), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    files = []
    for name in ("first", "second"):
        outcome, _ = run(toy_recipe(**GAUSSIAN, budget={"optimizer_steps": 9}), tmp_path / name, resume=True)
        files.append((outcome.checkpoint / "policy.safetensors").read_bytes())
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert files[0] == files[1]
