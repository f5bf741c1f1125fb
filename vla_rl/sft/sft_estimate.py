"""Estimate of the memory, disk and arithmetic of a supervised run, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_rl.ipc.memory_check import readable
from vla_rl.reporting.text import number
from vla_rl.run.estimate import CUDA_CONTEXT_BYTES, FRAGMENTATION, Line, cards, learner_state
from vla_rl.run.utilisation import hours_on_cards
from vla_rl.sft.frames import store_shape
from vla_rl.sft.plan import SupervisedPlan

LARGE_FLOPS = 1e12  # of a sample's forward and backward pass


@dataclass(frozen=True, slots=True)
class SupervisedReport:
    """Result of a dry run. Printing it gives a table."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        width = max(len(line.what) for line in self.lines)
        return "\n".join(f"{line.what:<{width}}  {line.value}" for line in self.lines)


def estimate(plan: SupervisedPlan, *, num_ranks: int) -> SupervisedReport:
    """Describe the data, the training and what they need."""
    recipe, samples, policy = plan.recipe, plan.samples, plan.policy
    rollouts = samples.rollouts
    batch = recipe.learner.batch_samples * num_ranks
    steps = recipe.budget.optimizer_steps
    state = learner_state(recipe.learner, policy.trainable_parameters, num_ranks=num_ranks)
    activations = recipe.learner.micro_batch * policy.training_bytes
    gpu = int(FRAGMENTATION * (policy.frozen_bytes + state + activations)) + CUDA_CONTEXT_BYTES
    flops = policy.update_flops * batch * steps
    height, width = rollouts.image_size
    size = plan.transform.input_size
    shown = "as they are" if (height, width) == (size, size) else f"resized to {size}x{size} first"
    frames = math.prod(store_shape(rollouts, recipe.demos.cameras, plan.transform))
    kept = f"in {recipe.demos.cache}" if recipe.demos.cache else "in the run's folder until it has ended"
    lines = [
        Line("run", f"{recipe.name}: supervised, on {recipe.demos.path} ({plan.demos.format})"),
        Line("tasks", f"{len(rollouts.instructions)}: {'; '.join(rollouts.instructions[:3])}"
             + ("; ..." if len(rollouts.instructions) > 3 else "")),
        Line("episodes", f"{len(rollouts.length):,}, {rollouts.num_rows:,} rows"),
        Line("samples", f"{len(samples.train):,} to train on, {len(samples.held_out):,} held out"
             + (f"; {samples.kept_to_train}" if samples.kept_to_train else "")),
        Line("pictures", f"{height}x{width}, {shown}; cameras {', '.join(recipe.demos.cameras)}"),
        Line("policy", policy.text),
        Line("mode", f"{num_ranks} rank(s), strategy {recipe.learner.strategy}, {plan.device}"),
        Line(
            "batch", f"{recipe.learner.micro_batch} samples x {recipe.learner.accumulation} x {num_ranks} rank(s)"
        ),
        Line("budget", f"{steps:,} optimizer steps, {batch * steps / len(samples.train):.1f} epochs"),
        Line("arithmetic", f"{number(flops / 1e15)} PFLOP in all"),
        Line("time", _time(plan, batch * steps, num_ranks=num_ranks)),
        Line("disk: prepared frames", f"{readable(frames)}, {kept}"),
        Line("frozen weights", readable(policy.frozen_bytes)),
        Line(
            "learner",
            f"{readable(state)} weights, gradients and moments + {readable(activations)} activations per micro-batch",
        ),
        Line("GPU memory per rank" if plan.device_kind == "cuda" else "on a GPU it would be",
             f"about {readable(gpu)}: {cards(gpu)}"),
    ]  # fmt: skip
    return SupervisedReport(tuple(lines))


def _time(plan: SupervisedPlan, num_samples: int, *, num_ranks: int) -> str:
    """Return how long the updates would take, for a policy that is large enough to be bound by its arithmetic."""
    policy = plan.policy
    if policy.update_flops < LARGE_FLOPS:
        return (
            "not estimated: arithmetic is not what bounds a policy this small; perf/seconds_left tells it at run time"
        )
    recomputes = getattr(plan.recipe.policy, "gradient_checkpointing", False)
    flops = num_samples * (policy.update_flops + (policy.inference_flops if recomputes else 0.0))
    recomputed = ", forward passes twice (policy.gradient_checkpointing)" if recomputes else ""
    return f"updates alone{recomputed}: {hours_on_cards(flops, num_cards=num_ranks)}"
