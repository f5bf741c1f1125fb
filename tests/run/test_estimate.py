"""The dry run's memory, against numbers worked out by hand from shapes, and the recipes that quote it."""

import re
from pathlib import Path

import pytest

from vla_rl import train
from vla_rl.envs.kind import EnvPlan
from vla_rl.envs.libero.assets import Assets
from vla_rl.envs.libero.check import SimulatorReport
from vla_rl.recipe import is_supervised, load_recipe
from vla_rl.run.estimate import MemoryEstimate, estimate, estimate_memory
from vla_rl.run.plan import make_plan as make_plan_here
from vla_rl.run.plan import make_training_plan, plan_policy, training_plan
from vla_rl.types import TaskInfo

RECIPES = Path(__file__).parents[2] / "recipes"
GIB = 2**30
# Recipes of the 7B policy; those of the scaled-down one run on CPUs and quote host memory.
SIZED = sorted(
    path.stem for path in RECIPES.glob("libero_*.yaml") if not is_supervised(path) and "tiny" not in path.stem
)


def make_plan(name, *overrides, device="cuda:0", gl="egl"):
    """A plan on a machine that has neither the weights, nor a simulator, nor the GPU."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", ["policy.checkpoint=random-7b", *overrides])
    policy = plan_policy(recipe.setup)
    simulator = SimulatorReport({}, gl, "a renderer", Assets(Path(), "full"), ()) if gl else None
    env = EnvPlan((TaskInfo("libero_spatial", 0, "t", "t"),), (), (50,), 220, (), simulator)
    return training_plan(recipe, env=env, policy=policy, device=device)


@pytest.fixture(scope="module")
def paper():
    plan = make_plan("libero_spatial_gipo")
    return plan, estimate_memory(plan, num_ranks=1)


def test_the_frozen_7b_model_is_counted_once_without_the_unused_tensors(paper):
    # 7,541,237,184 published parameters less 43,080,480 that never reach the output, two bytes each.
    assert paper[1].frozen == 2 * (7_541_237_184 - 43_080_480)


def test_what_is_trained_costs_16_bytes_per_parameter_and_4_at_the_inference_worker(paper):
    # rank 32: q, k, v, o 32 (4096 + 4096); gate, up, down 32 (4096 + 11008); 32 layers. 256 rows of lm_head. Critic:
    # score 4097, norm 8192, fc1 4096 * 4097, fc2 4097.
    trained = 32 * 32 * (4 * 8192 + 3 * 15104) + 256 * 4096 + (4097 + 8192 + 4096 * 4097 + 4097)
    assert paper[0].policy.trainable_parameters == trained
    assert paper[1].learner_state == 16 * trained
    assert (paper[1].inference_weights, paper[1].mailbox) == (4 * trained, 8 * trained)


def test_activations_follow_from_tokens_and_widths(paper):
    memory = paper[1]
    prompt = 31  # at most: ids of the longest prompt, BOS and the lone space included
    tokens = 1 + 256 + prompt - 1 + 56 + 1
    per_layer = 22 * 4096 + 8 * 11008  # bytes per token in bfloat16
    heads = 4 * 4 * 56 * (256 + 4096)
    assert memory.learner_activations == pytest.approx(12 * (33 * tokens * per_layer + heads), rel=0.03)
    assert memory.inference_activations == pytest.approx(16 * (2 * tokens * per_layer + heads), rel=0.03)
    in_one = estimate_memory(make_plan("libero_spatial_gipo", "learner.accumulation=1"), num_ranks=1)
    assert in_one.learner_activations * 12 == memory.learner_activations * 13  # the bootstrap observation passes too
    for overrides, observations in (
        (["loss.advantage_moments=running"], 13),
        (["loss.normalize_advantages=false"], 13),
        (["targets.values=acting"], 12),
        (["targets.values=acting", "learner.accumulation=1"], 12),
    ):
        other = estimate_memory(make_plan("libero_spatial_gipo", *overrides), num_ranks=1)
        assert other.learner_activations * 12 == memory.learner_activations * observations
    checkpointed = estimate_memory(make_plan("libero_spatial_gipo", "policy.gradient_checkpointing=true"), num_ranks=1)
    kept = 32 * 2 * 4096 * tokens
    assert checkpointed.learner_activations == pytest.approx(12 * (kept + 2 * tokens * per_layer + heads), rel=0.03)


def test_zero_shards_gradients_and_moments(paper):
    eight = estimate_memory(make_plan("libero_spatial_gipo_8gpu", "learner.strategy=deepspeed"), num_ranks=8)
    assert eight.learner_state == pytest.approx(paper[1].learner_state * (4 + 4 / 8 + 8 / 8) / 16)


def test_zero_3_keeps_the_frozen_weights_twice():
    """Its engine takes the learner's apart, so the inference worker has whole ones beside it."""
    once, twice = (
        make_plan("libero_spatial_gipo_8gpu", "learner.strategy=deepspeed", f"learner.zero_stage={stage}")
        for stage in (2, 3)
    )
    difference = estimate_memory(twice, num_ranks=8).gpu - estimate_memory(once, num_ranks=8).gpu
    assert difference == pytest.approx(1.1 * 2 * (7_541_237_184 - 43_080_480), abs=2)
    assert "27.9 GiB, one copy for the learner, which ZeRO-3 takes apart" in str(estimate(twice, num_ranks=8))


def test_an_own_copy_of_the_frozen_weights_for_the_inference_worker_is_counted(paper):
    """On a GPU as its memory, on a CPU as the host's instead of shared memory."""
    own = make_plan("libero_spatial_gipo", "runtime.share_frozen=false")
    frozen = 2 * (7_541_237_184 - 43_080_480)
    assert estimate_memory(own, num_ranks=1).gpu - paper[1].gpu == pytest.approx(1.1 * frozen, abs=2)
    assert "27.9 GiB, one copy for the learner and one for the inference worker" in str(estimate(own, num_ranks=1))
    on_cpu = [
        make_plan("libero_spatial_gipo", f"runtime.share_frozen={share}", device="cpu") for share in ("auto", "false")
    ]
    shared, twice = (estimate_memory(plan, num_ranks=1) for plan in on_cpu)
    assert twice.host - shared.host == frozen
    blocks = [estimate(plan, num_ranks=1).shared_memory_bytes for plan in on_cpu]
    assert blocks[0] - blocks[1] == frozen


def test_the_report_says_when_a_gpu_may_hold_the_frozen_weights_twice(paper):
    maybe = "two where processes cannot share GPU memory (runtime.share_frozen)"
    assert maybe in str(estimate(paper[0], num_ranks=1))
    assert maybe not in str(estimate(make_plan("libero_spatial_gipo", "runtime.share_frozen=true"), num_ranks=1))


def test_simulators_that_draw_with_egl_take_room_on_the_gpu(paper):
    assert paper[1].drawing == 10 * 2 * 2 * 150 * 2**20  # workers, slots each, open simulators each
    elsewhere = estimate_memory(make_plan("libero_spatial_gipo", gl="osmesa"), num_ranks=1)
    assert paper[1].gpu - elsewhere.gpu == paper[1].drawing
    assert "GPU: drawing" in str(estimate(paper[0], num_ranks=1))


def test_evaluations_while_training_hold_the_policy_once_more(paper):
    plan, without = paper
    every = make_plan("libero_spatial_gipo", "evaluation.every_optimizer_steps=500")
    policy = 1.1 * (without.frozen + 2 * without.inference_weights + 20 * plan.policy.inference_bytes)
    again = policy + 500 * 2**20 + without.drawing  # and one more CUDA context
    assert estimate_memory(every, num_ranks=1).gpu - without.gpu == pytest.approx(again, rel=1e-6)
    assert "evaluation while training" in str(estimate(every, num_ranks=1))


def test_on_a_cpu_everything_is_the_host_s(paper):
    on_cpu = estimate_memory(make_plan("libero_spatial_gipo", device="cpu"), num_ranks=1)
    assert isinstance(on_cpu, MemoryEstimate)
    on_gpu = paper[1]
    assert on_cpu.host - on_cpu.processes == on_gpu.host - on_gpu.processes + (
        on_gpu.frozen + on_gpu.learner + on_gpu.inference
    )
    assert on_cpu.gpu == on_gpu.gpu


def test_the_report_names_the_card_and_what_sharing_saves(paper):
    report = str(estimate(paper[0], num_ranks=1))
    assert "14.0 GiB, one copy for learner and inference worker (two would be 27.9 GiB)" in report
    assert re.search(r"GPU memory per rank +about \d+\.\d GiB: a card of 80 GB or more", report)
    assert "replay ring" in report


@pytest.mark.parametrize("name", SIZED)
def test_a_recipe_quotes_its_estimate(name):
    quoted = re.search(
        r"^# Memory: +(\d+) GiB on the GPU", (RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), re.M
    )
    assert quoted
    plan = make_plan(name)
    assert float(quoted[1]) == pytest.approx(estimate_memory(plan, num_ranks=plan_ranks(plan)).gpu / GIB, abs=1.5)


def plan_ranks(plan):
    ranks = plan.recipe.learner.num_ranks
    return ranks if isinstance(ranks, int) else 1


def test_a_dry_run_that_finds_no_room_shows_the_estimate_all_the_same(monkeypatch):
    def no_room(_):
        raise ValueError("shared memory: too small")

    plan = make_plan("libero_spatial_gipo", device="cpu")
    monkeypatch.setattr(train, "check_room", no_room)
    monkeypatch.setattr(train, "make_training_plan", lambda _: plan)
    with pytest.raises(ValueError, match=r"(?s)^shared memory: too small\n\nrun .*host memory in all"):
        train.dry_run(plan.recipe)


def test_the_paper_s_recipes_differ_in_suite_and_surrogate_alone():
    def rest(suite, surrogate):
        recipe = load_recipe(RECIPES / f"libero_{suite}_{surrogate}.yaml")
        assert (recipe.env.suite, recipe.surrogate.name) == (f"libero_{suite}", surrogate)
        values = recipe.model_dump(exclude={"name", "description", "surrogate"})
        del values["env"]["suite"], values["policy"]["checkpoint"]
        return values

    expected = rest("spatial", "gipo")
    for suite in ("spatial", "object", "goal", "10"):
        assert all(rest(suite, surrogate) == expected for surrogate in ("gipo", "ppo", "sapo"))


def test_env_workers_that_decide_themselves_each_hold_what_is_trained_and_torch():
    """Two workers of two simulators: a copy each, batches of their own two slots, and no inference worker."""
    overrides = ["rollout.num_workers=2", "rollout.envs_per_worker=2", "rollout.inference=local"]
    toys = load_recipe(RECIPES / "toy.yaml", [*overrides, "runtime.mode=async", "runtime.device=cpu"])
    local = make_training_plan(toys)
    shared = make_training_plan(
        toys.model_copy(update={"rollout": toys.rollout.model_copy(update={"inference": "shared"})})
    )
    memory, beside = estimate_memory(local, num_ranks=1), estimate_memory(shared, num_ranks=1)
    assert memory.inference_weights == 2 * beside.inference_weights == 2 * 4 * local.policy.trainable_parameters
    assert memory.processes == beside.processes / 2
    assert memory.env_worker == beside.env_worker + memory.processes
    assert "learner, 2 env worker(s) with 2 env(s) each, which decide themselves" in str(estimate(local, num_ranks=1))


def test_env_workers_hold_no_frozen_weights():
    recipe = load_recipe(
        RECIPES / "quickstart.yaml", ["rollout.inference=local", "runtime.mode=async", "runtime.device=cpu"]
    )
    with pytest.raises(
        ValueError, match=r"rollout\.inference: local .* has frozen weights .* Use rollout\.inference=shared"
    ):
        make_plan_here(recipe.setup)
