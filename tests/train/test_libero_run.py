"""The real policy on the real simulator, in one process: a few decisions of one short task."""

import math

import pytest
from toy_runs import metrics, run

from vla_rl.export.policy_export import export
from vla_rl.recipe import Recipe

pytestmark = pytest.mark.libero


def libero_recipe(**sections):
    values = {
        "name": "libero-test",
        "env": {"name": "libero", "suite": "libero_spatial", "tasks": [3], "assets": "proxy", "horizon": 16},
        "policy": {"name": "openvla_oft", "image_size": 56},
        "surrogate": {"name": "gipo", "sigma": 1.0},
        "optimizer": {"policy_lr": 1e-3, "value_lr": 1e-3, "schedule": "constant"},
        "replay": {"capacity": 16, "min_decisions": 2, "segment_length": 2, "replay_ratio": 2.0},
        "learner": {"micro_batch": 1, "accumulation": 2},
        "runtime": {"mode": "serial", "device": "cpu", "threads_per_process": 1},
        "budget": {"optimizer_steps": 6},
        "logging": {"tensorboard": False},
    }
    return Recipe.model_validate(values | sections)


def test_behaviour_and_learner_compute_the_same_log_probabilities(tmp_path):
    run(libero_recipe(), tmp_path / "run")
    points = metrics(tmp_path / "run")
    assert points[0]["policy_lag/max"] == 0
    assert 0 <= points[0]["ratio/abs_log_p95"] < 1e-4  # the two sides compute the same policy
    assert points[-1]["policy_lag/max"] > 0
    assert points[-1]["ratio/abs_log_p95"] > points[0]["ratio/abs_log_p95"]  # and the weights do change
    assert all(math.isfinite(point["learner/policy_loss"]) for point in points)


def test_a_run_whose_inference_worker_loads_its_own_frozen_weights_is_the_same(tmp_path):
    for share in ("auto", False):
        runtime = {"mode": "serial", "device": "cpu", "threads_per_process": 1, "share_frozen": share}
        run(libero_recipe(runtime=runtime, budget={"optimizer_steps": 3}), tmp_path / str(share))
    assert metrics(tmp_path / "auto") == metrics(tmp_path / "False")


@pytest.mark.slow
def test_a_perturbed_run_repeats_itself_differs_from_an_unperturbed_one_and_resumes(tmp_path):
    env = {"name": "libero", "suite": "libero_spatial", "tasks": [3], "assets": "proxy", "horizon": 16}
    perturbed = env | {"perturb": {"kinds": ["camera", "action-noise:5"]}}
    for name, chosen in (("plain", env), ("first", perturbed), ("second", perturbed)):
        run(libero_recipe(env=chosen, budget={"optimizer_steps": 1}), tmp_path / name)
    assert metrics(tmp_path / "first") == metrics(tmp_path / "second")
    assert metrics(tmp_path / "first") != metrics(tmp_path / "plain")
    told = (tmp_path / "first" / "manifest.json").read_text()
    assert "perturbed episodes: camera, action-noise:5 in 100 % of the episodes" in told
    run(libero_recipe(env=perturbed, budget={"optimizer_steps": 2}), tmp_path / "first", resume=True)
    assert metrics(tmp_path / "first")[-1]["optimizer_steps"] == 2


@pytest.mark.slow
def test_a_run_with_compiled_layers_trains_alike_resumes_and_is_exported(tmp_path):
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    learner = {"micro_batch": 1, "accumulation": 2}
    run(libero_recipe(budget={"optimizer_steps": 2}), plain)
    run(libero_recipe(budget={"optimizer_steps": 2}, learner=learner | {"compile": "layers"}), compiled)
    for expected, found in zip(metrics(plain), metrics(compiled), strict=True):
        assert found["learner/value_loss"] == pytest.approx(expected["learner/value_loss"], rel=1e-3)
        assert found["ratio/abs_log_p95"] == pytest.approx(expected["ratio/abs_log_p95"], abs=1e-3)
    assert "layers compiled in" in (compiled / "logs" / "learner.log").read_text()
    run(libero_recipe(budget={"optimizer_steps": 3}, learner=learner | {"compile": "layers"}), compiled, resume=True)
    assert metrics(compiled)[-1]["optimizer_steps"] == 3
    export(compiled, out=tmp_path / "exported", dtype="float32", verify=2)
    assert (tmp_path / "exported" / "model.safetensors").is_file()
