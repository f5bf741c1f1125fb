"""A policy to evaluate: a small toy run with one checkpoint, trained once for all tests."""

import io

import pytest
from rich.console import Console

from vla_rl.recipe import Recipe
from vla_rl.train import train

RECIPE = {
    "name": "toy-test",
    "env": {"name": "toy", "tasks": [0, 1], "horizon": 8, "chunk_size": 2},
    "policy": {"name": "mlp", "hidden_dim": 16, "num_bins": 8},
    "surrogate": {"name": "gipo", "sigma": 1.0},
    "optimizer": {"policy_lr": 3e-3, "value_lr": 3e-3, "schedule": "constant"},
    "replay": {"capacity": 512, "min_decisions": 16, "segment_length": 4, "replay_ratio": 2.0},
    "learner": {"micro_batch": 16},
    "rollout": {"num_workers": 1, "envs_per_worker": 2, "max_batch": 2},
    "runtime": {"mode": "serial", "device": "cpu", "threads_per_process": 1},
    "budget": {"optimizer_steps": 30},
    "logging": {"tensorboard": False},
}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of the run. Tests write their results elsewhere."""
    folder = tmp_path_factory.mktemp("trained") / "toy-test"
    train(Recipe.model_validate(RECIPE), run_dir=folder, resume=False, console=Console(file=io.StringIO()))
    return folder
