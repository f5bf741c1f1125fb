"""A run of a small OpenVLA-OFT, and the files of evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from vla_rl.evaluation.episode_log import EpisodeResult
from vla_rl.evaluation.eval_results import write_results
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.learner.checkpoint import Progress, save
from vla_rl.learner.engine import Engine
from vla_rl.recipe import build_recipe
from vla_rl.reporting.manifest import write_manifest
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.run.plan import plan_policy

RECIPE = """
name: small
seed: 5
env: {name: libero, suite: libero_goal, tasks: [3, 5], physics: fast}
policy: {name: openvla_oft, image_size: 28, lora: {rank: 2, alpha: 4.0}}
surrogate: {name: gipo, sigma: 0.25}
replay: {capacity: 200}
budget: {optimizer_steps: 10}
logging: {mlflow: {tracking_uri: "https://tracker.of.the.lab"}}
"""
STEP, ENV_STEPS, EPISODES = 7, 12_345, 67
DEVIATION = "fast physics instead of LIBERO's own"


def make_run(folder: Path) -> Path:
    """A run's folder with one checkpoint."""
    recipe = build_recipe(RECIPE)
    policy = plan_policy(recipe.setup).build(device="cpu")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    settings = OptimizerSection(policy_lr=0.0, value_lr=0.0, schedule="constant")
    engine = Engine(policy, strategy="single", zero_stage=2, precision="fp32", device="cpu", optimizer=settings)
    save(folder, engine, progress=Progress(STEP, ENV_STEPS, 999, EPISODES, 7, 0), extra={}, writers={}, keep=1)
    (folder / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    write_manifest(
        folder / "manifest.json",
        recipe=recipe.model_dump(mode="json", by_alias=True),
        seeds={},
        assets={},
        deviations=[DEVIATION],
        extra={},
    )
    (folder / "logs").mkdir()
    (folder / "logs" / "learner.log").write_text("a line\n", encoding="utf-8")
    return folder


def evaluate(folder: Path, *, fingerprint: str, successes: int, **conditions: object) -> Path:
    """The files of an evaluation of 20 episodes: ten of each of two tasks."""
    episodes = [
        EpisodeResult(
            suite="libero_goal", task_id=task, init_state=number, seed=0, success=10 * (task == 5) + number < successes,
            env_steps=100, episode_return=0.0, seconds=1.0,
        )
        for task in (3, 5)
        for number in range(10)
    ]  # fmt: skip
    facts = {
        "checkpoint": "runs/small", "fingerprint": fingerprint, "trained_on": "", "protocol": "oft", "horizon": None,
        "temperature": None, "seeds": [0], "init_states": "standard", "assets": "proxy, files 0123456789ab",
        "versions": "mujoco 3.3.0", **conditions,
    }  # fmt: skip
    details = {"evaluation": facts, "deviations": ["built-in proxy assets | instead of LIBERO's"], "controls": []}
    write_results(folder, episodes, languages={("libero_goal", 3): "open <the> drawer"}, details=details)
    (folder / "manifest.json").write_text(json.dumps({"extra": {"horizons": {"libero_goal": 300}}}), encoding="utf-8")
    return folder


def fingerprint_of(target: Path) -> str:
    return find_policy(str(target), profile="auto").fingerprint
