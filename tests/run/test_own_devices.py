"""Every process that computes makes its rank's GPU the current one first; there is none here, so the call is caught."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vla_rl.evaluation.play import play
from vla_rl.export import policy_export as export
from vla_rl.recipe import Recipe
from vla_rl.run.plan import make_training_plan
from vla_rl.run.training import TrainingRun
from vla_rl.workers.episodes import EpisodeJob

TOY = {
    "name": "toy",
    "env": {"name": "toy", "tasks": [0], "horizon": 8, "chunk_size": 2},
    "policy": {"name": "mlp"},
    "surrogate": {"name": "no_clip"},
    "replay": {"segment_length": 4},
    "runtime": {"device": "cpu", "threads_per_process": 1},
    "budget": {"optimizer_steps": 1},
}
VLA = TOY | {
    "env": {"name": "libero", "suite": "libero_spatial", "tasks": [0], "assets": "proxy"},
    "policy": {"name": "openvla_oft", "image_size": 28},
}


class CurrentError(Exception):
    """Raised in place of telling CUDA, with the device."""


@pytest.fixture(autouse=True)
def caught(monkeypatch):
    def set_device(device):
        raise CurrentError(device)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(export, "resolve_device", lambda asked: "cuda:1")


def toy_plan():
    """A plan whose rank has the second GPU; building on it would fail before anything else could be noticed."""
    plan = make_training_plan(Recipe.model_validate(TOY))
    return replace(plan, device="cuda:1", policy=replace(plan.policy, build=None))  # type: ignore[arg-type]


def test_a_learner(tmp_path):
    with pytest.raises(CurrentError, match="cuda:1"):
        TrainingRun(toy_plan(), tmp_path, resume_from=None, rank=1, num_ranks=2)


def test_an_evaluation(tmp_path):
    job = EpisodeJob(task_index=0, init_state=0, seed=0, job_id=0)
    log: Any = SimpleNamespace(done=set())
    with pytest.raises(CurrentError, match="cuda:1"):
        play(toy_plan(), None, [job], lambda _: log, greedy=True, log_dir=tmp_path, on_episode=print)


def test_an_export_of_a_run_and_of_a_network(tmp_path):
    setup = Recipe.model_validate(VLA).setup
    source: Any = SimpleNamespace(run=setup, policy=setup.policy, location="here")
    with pytest.raises(CurrentError, match="cuda:1"):
        export._export_trained(source, tmp_path, tmp_path, tmp_path, kind="merged", dtype=None, verify=0)
    with pytest.raises(CurrentError, match="cuda:1"):
        export._export_network(source, tmp_path, tmp_path, profile="auto", dtype=None, verify=0)
