"""Trained tensors go on only in the network that they were trained in."""

import shutil
from pathlib import Path

import pytest
import torch
from toy_runs import run, toy_recipe

from vla_rl.errors import UserError
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.learner.checkpoint import CheckpointError
from vla_rl.learner.optimizer import trainable_parameters
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.recipe import build_recipe
from vla_rl.run.plan import plan_policy
from vla_rl.run.trained_network import check_network, network_record
from vla_rl.types import PolicyInputs

RECIPE = """
name: small
seed: 5
env: {name: libero, suite: libero_goal, tasks: [3]}
policy: {name: openvla_oft, image_size: 14, lora: {rank: 2, alpha: 4}}
surrogate: {name: gipo}
budget: {optimizer_steps: 10}
"""
WHOLE = ("policy.lora=null", "policy.train_backbone=true")
GAUSSIAN = {"distribution": "gaussian", "hidden_dim": 16}


CHECKPOINT = Path("runs/x/checkpoints/optimizer_step_4")


def plan(*overrides):
    return plan_policy(build_recipe(RECIPE, overrides).setup)


def check(before, now):
    check_network(now, CHECKPOINT, network_record(before))


@pytest.mark.parametrize(
    ("trained", "change", "back"),
    [
        ([], "seed=6", "seed=5"),
        ([*WHOLE, "policy.train_embeddings=false"], "seed=6", "seed=5"),
        ([], "policy.lora.alpha=16", "policy.lora.alpha=4.0"),
        ([], "policy.profile=rlinf", "policy.profile=simplevla"),
        ([], "policy.image_size=28", "policy.image_size=14"),
        (["policy.train_proprio_projector=false"], "policy.proprio=false", "policy.proprio=true"),
    ],
)
def test_what_makes_another_network_is_refused_with_what_to_type(trained, change, back):
    field = back.partition("=")[0]
    with pytest.raises(CheckpointError, match=f"{field}: trained with .*, found .* Continue with {back}$"):
        check(plan(*trained), plan(*trained, change))
    check(plan(*trained), plan(*trained, change, back))


@pytest.mark.parametrize(
    "change", ["policy.lora.dropout=0.1", "policy.profile=simplevla", "policy.dtype=bfloat16", "env.tasks=[4]"]
)
def test_what_leaves_the_network_as_it_is_may_change(change):
    check(plan(), plan(change))


def test_a_network_that_is_trained_whole_has_no_seed():
    """Its tensors say all, so that with them another seed gives the same answers."""
    plans = [plan(*WHOLE, f"seed={seed}") for seed in (5, 6)]
    check(*plans)
    first, other = (each.build(device="cpu") for each in plans)
    frames = torch.randint(256, (2, *first.observation_spec.frames_shape), dtype=torch.uint8)
    inputs = PolicyInputs(frames=frames, state=torch.zeros(2, 8), task_index=torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        assert not torch.equal(first.network(inputs).logits, other.network(inputs).logits)
        for name, tensor in trainable_parameters(other).items():
            tensor.copy_(trainable_parameters(first)[name])
        assert torch.equal(first.network(inputs).logits, other.network(inputs).logits)


def test_a_checkpoint_is_known_by_its_weights_wherever_they_lie(tmp_path):
    for seed in (1, 2):
        (tmp_path / f"seed {seed}").mkdir()
        write_checkpoint(
            plan("policy.lora=null", f"seed={seed}").build(device="cpu"), tmp_path / f"seed {seed}", step=0
        )
    shutil.copytree(tmp_path / "seed 1", tmp_path / "copy")
    one, other, copy = (plan(f"policy.checkpoint={tmp_path / name}") for name in ("seed 1", "seed 2", "copy"))
    check(one, copy)
    check(one, plan(f"policy.checkpoint={tmp_path / 'seed 1'}", "seed=6"))
    with pytest.raises(
        CheckpointError, match=r"policy\.checkpoint: .*other weights.* 'policy\.checkpoint=/.*/seed 1'$"
    ):
        check(one, other)


def test_a_run_goes_on_and_is_evaluated_only_with_the_network_that_it_trained(tmp_path):
    run(toy_recipe(policy=GAUSSIAN), tmp_path / "run")
    recorded = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(UserError, match=r"found tanh\. Continue with policy\.mean=linear"):
        run(toy_recipe(policy=GAUSSIAN | {"mean": "tanh"}), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recorded
    (tmp_path / "run" / "recipe.yaml").write_text(recorded.replace("mean: linear", "mean: tanh"))
    with pytest.raises(UserError, match=r"policy\.mean"):
        evaluate(tmp_path / "run", EvalOptions(episodes_per_task=1, workers=1))
    (tmp_path / "run" / "recipe.yaml").write_text(recorded)
    run(toy_recipe(policy=GAUSSIAN, seed=7, budget={"optimizer_steps": 7}), tmp_path / "run", resume=True)


def test_a_checkpoint_of_an_older_version_has_no_record():
    check_network(plan(), CHECKPOINT, None)
