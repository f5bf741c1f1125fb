"""What would run, and how much memory it would take: the dry run."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.ipc.shared_arrays import bytes_needed
from vla_rl.ipc.slots import slot_fields
from vla_rl.replay.layout import RingLayout
from vla_rl.run.plan import Plan

MAILBOX_BUFFERS = 2
ADAM_BYTES = 16  # per trainable parameter: float32 weight, gradient and two moments
PYTHON_TORCH_BYTES = 450 << 20  # resident size of a process that has imported torch, measured
SIMULATOR_BYTES = 700 << 20  # of an env worker with one LIBERO simulator and its graphics context, measured
PLAIN_WORKER_BYTES = 80 << 20  # of an env worker without a simulator, measured


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report."""

    what: str
    value: str


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """What would run. Printing it gives a table."""

    lines: tuple[Line, ...]
    shared_memory_bytes: int  # all cells together

    def __str__(self) -> str:
        width = max(len(line.what) for line in self.lines)
        return "\n".join(f"{line.what:<{width}}  {line.value}" for line in self.lines)


def ring_layout(plan: Plan) -> RingLayout:
    """Layout of the plan's replay ring.

    Raises:
        ValueError: `replay.capacity` is too small for the env slots, the longest episode or `replay.min_decisions`.
    """
    replay = plan.recipe.replay
    layout = RingLayout(
        plan.observation_spec,
        plan.action_spec,
        plan.num_slots,
        replay.capacity,
        plan.max_episode_decisions,
        plan.store_logits,
    )
    if replay.min_decisions > layout.guaranteed_decisions:
        raise ValueError(
            f"replay.min_decisions is {replay.min_decisions}, but a ring with replay.capacity {replay.capacity} is "
            f"sure to hold only {layout.guaranteed_decisions} decisions, so warm-up might never end. "
            "Lower replay.min_decisions or raise replay.capacity"
        )
    return layout


def estimate(plan: Plan, *, num_ranks: int) -> DryRunReport:
    """Sizes of everything that a plan would allocate.

    Args:
        plan: the recipe in plain values.
        num_ranks: cells.

    Raises:
        ValueError: `replay.capacity` is too small.
    """
    recipe, policy, observed = plan.recipe, plan.policy, plan.observation_spec
    ring = bytes_needed(ring_layout(plan).fields())
    slots = bytes_needed(
        slot_fields(plan.observation_spec, plan.action_spec, plan.num_slots, store_logits=plan.store_logits)
    )
    mailbox = MAILBOX_BUFFERS * policy.trainable_bytes
    on_cpu = plan.device == "cpu"
    shared = ring + slots + mailbox + (policy.frozen_bytes if on_cpu else 0)
    learner = PYTHON_TORCH_BYTES + ADAM_BYTES * policy.trainable_parameters
    inference = PYTHON_TORCH_BYTES + policy.trainable_bytes
    worker = PLAIN_WORKER_BYTES if plan.env.simulator is None else SIMULATOR_BYTES * recipe.rollout.envs_per_worker
    total = num_ranks * (shared + learner + inference + recipe.rollout.num_workers * worker)
    lines = [
        Line("run", f"{recipe.name}: {recipe.surrogate.name} on {_tasks(plan)}"),
        Line("mode", f"{recipe.runtime.mode}, {num_ranks} rank(s), strategy {recipe.learner.strategy}, {plan.device}"),
        Line(
            "processes per rank",
            "1 (serial)"
            if recipe.runtime.mode == "serial"
            else f"learner, inference worker, {recipe.rollout.num_workers} env worker(s) "
            f"with {recipe.rollout.envs_per_worker} env(s) each",
        ),
        Line("policy", policy.text),
        Line("observation", f"frames {observed.frames_shape} uint8, state ({observed.state_dim},)"),
        Line(
            "decision",
            f"{plan.action_spec.chunk_size} control steps x {plan.action_spec.action_dim} components, "
            f"{plan.action_spec.num_bins} bins; at most {plan.max_episode_decisions} decisions per episode",
        ),
        Line("parameters", f"{policy.trainable_parameters:,} trainable, {policy.frozen_parameters:,} frozen"),
        Line(
            "batch",
            f"{recipe.learner.micro_batch} segments x {recipe.learner.accumulation} x {num_ranks} rank(s), "
            f"up to {recipe.replay.segment_length} decisions each",
        ),
        Line("budget", f"{recipe.budget.optimizer_steps:,} optimizer steps"),
        Line("replay ring", f"{recipe.replay.capacity:,} decisions, {readable(ring)} per rank"),
        Line("weight mailbox", f"{readable(mailbox)} per rank"),
        Line("frozen weights", f"{readable(policy.frozen_bytes)} per rank, one copy for learner and inference worker"),
        Line("shared memory", f"{readable(num_ranks * shared)} in all"),
        Line("learner process", f"about {readable(learner)} + activations"),
        Line("inference process", f"about {readable(inference)} + activations"),
        Line("env worker process", f"about {readable(worker)} each"),
        Line("memory in all", f"about {readable(total)} + activations"),
    ]
    lines += [Line("deviation", deviation) for deviation in plan.env.deviations]
    return DryRunReport(tuple(lines), num_ranks * shared)


def readable(num_bytes: int) -> str:
    """1_500_000_000 to '1.4 GiB'."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _tasks(plan: Plan) -> str:
    tasks = plan.env.tasks
    return f"{tasks[0].suite}, {len(tasks)} task(s): {', '.join(str(task.task_id) for task in tasks)}"
