"""Dry run: the processes of a run, and an estimate of their memory."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.ipc.memory_check import readable
from vla_rl.ipc.shared_arrays import bytes_needed
from vla_rl.ipc.slots import slot_fields
from vla_rl.recipe import Recipe
from vla_rl.recipe.sections import EngineSection
from vla_rl.replay.layout import RingLayout
from vla_rl.run.plan import OPEN_ENVS_PER_SLOT, TrainingPlan
from vla_rl.types import ActionSpec

MAILBOX_BUFFERS = 2
PYTHON_TORCH_BYTES = 450 << 20  # resident size of a process that has imported torch, measured
SIMULATOR_BYTES = 700 << 20  # env worker with one LIBERO simulator and its graphics context, measured
CUDA_HOST_BYTES = 1 << 30  # added to such a process by CUDA's libraries; assumed, not measured
CUDA_CONTEXT_BYTES = 500 << 20  # CUDA context of each process on a GPU; assumed, not measured
DRAWING_BYTES = 150 << 20  # memory of a simulator that renders on a GPU; assumed, not measured
FRAGMENTATION = 1.1  # torch's allocator reserves more than it allocates; assumed
GPU_GIGABYTES = (24, 40, 48, 80, 141)
PLAIN_WORKER_BYTES = 80 << 20  # resident size of an env worker without a simulator, measured
REMOTE_WORKER_BYTES = 140 << 20  # resident size of an env worker whose simulators are on another machine, measured


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report."""

    what: str
    value: str


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """Result of a dry run. Printing it gives a table."""

    lines: tuple[Line, ...]
    shared_memory_bytes: int  # all cells together

    def __str__(self) -> str:
        width = max(len(line.what) for line in self.lines)
        return "\n".join(f"{line.what:<{width}}  {line.value}" for line in self.lines)


def ring_layout(plan: TrainingPlan) -> RingLayout:
    """Return the layout of the plan's replay ring.

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


def estimate(plan: TrainingPlan, *, num_ranks: int) -> DryRunReport:
    """Estimate the size of everything that a plan would allocate.

    Args:
        plan: the recipe in plain values.
        num_ranks: cells.

    Raises:
        ValueError: `replay.capacity` is too small.
    """
    recipe, policy, observed = plan.recipe, plan.policy, plan.observation_spec
    memory = estimate_memory(plan, num_ranks=num_ranks)
    lines = [
        Line("run", f"{recipe.name}: {recipe.surrogate.name} on {_tasks(plan)}"),
        Line("mode", f"{recipe.runtime.mode}, {num_ranks} rank(s), strategy {recipe.learner.strategy}, {plan.device}"),
        Line(
            "processes per rank",
            "1 (serial)"
            if recipe.runtime.mode == "serial"
            else f"learner, {'' if plan.env_workers_decide else 'inference worker, '}"
            f"{recipe.rollout.num_workers} env worker(s) with {recipe.rollout.envs_per_worker} env(s) each"
            f"{', which decide themselves' if plan.env_workers_decide else ''}",
        ),
        *([Line("simulators", _places(plan, num_ranks=num_ranks))] if recipe.rollout.remote else []),
        Line("policy", policy.text),
        Line("observation", f"frames {observed.frames_shape} uint8, state ({observed.state_dim},)"),
        Line(
            "decision",
            f"{plan.action_spec.chunk_size} control steps x {plan.action_spec.action_dim} components, "
            f"{_family(plan.action_spec)}; at most {plan.max_episode_decisions} decisions per episode",
        ),
        Line("parameters", f"{policy.trainable_parameters:,} trainable, {policy.frozen_parameters:,} frozen"),
        Line(
            "batch",
            f"{recipe.learner.micro_batch} segments x {recipe.learner.accumulation} x {num_ranks} rank(s), "
            f"up to {recipe.replay.segment_length} decisions each",
        ),
        Line("budget", f"{recipe.budget.optimizer_steps:,} optimizer steps"),
        *_memory_lines(plan, memory, num_ranks=num_ranks),
    ]
    lines += [Line("deviation", deviation) for deviation in plan.env.deviations]
    shared_frozen = 0 if memory.on_gpu or recipe.runtime.share_frozen is False else memory.frozen
    return DryRunReport(tuple(lines), num_ranks * (memory.shared + shared_frozen))


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory of one rank in bytes: allocations for tensors, and the base cost of each process."""

    on_gpu: bool  # device of the policy's part
    frozen: int  # one copy
    learner_state: int  # float32 weights, gradients and AdamW's moments of trained parameters
    learner_activations: int  # of one micro-batch, at the peak of the backward pass
    inference_weights: int  # copies of trained parameters, one for each process that decides
    inference_activations: int  # of one full batch each
    replay: int
    mailbox: int
    slots: int
    processes: int  # learner, and inference worker if there is one, on the host
    env_worker: int  # each
    env_workers: int  # all
    evaluation_workers: int  # all of an evaluation, whose simulators are always here
    servers: int  # processes that decide
    frozen_copies: int  # 2 where learner and inference worker do not share one
    drawing: int  # simulators, on the GPU
    evaluation_drawing: int  # those of an evaluation
    evaluation: int = 0  # the policy once more, for evaluations while training, with what computes its actions

    @property
    def shared(self) -> int:
        """Return the shared memory besides the frozen weights."""
        return self.replay + self.mailbox + self.slots

    @property
    def learner(self) -> int:
        """Return the learner's part of the policy, without the frozen weights."""
        return self.learner_state + self.learner_activations

    @property
    def inference(self) -> int:
        """Return the part of the policy of what decides, without the frozen weights."""
        return self.inference_weights + self.inference_activations

    @property
    def gpu(self) -> int:
        """Return the total on one GPU: the policy including fragmentation, CUDA contexts, the simulators."""
        policy = self.frozen_copies * self.frozen + self.learner + self.inference + self.evaluation
        # An evaluation has processes of its own.
        again = CUDA_CONTEXT_BYTES + self.evaluation_drawing if self.evaluation else 0
        return int(FRAGMENTATION * policy) + (1 + self.servers) * CUDA_CONTEXT_BYTES + self.drawing + again

    @property
    def host(self) -> int:
        """Return the total that is not on a GPU."""
        policy = self.frozen_copies * self.frozen + self.learner + self.inference + self.evaluation
        again = self.evaluation_workers if self.evaluation else 0
        return self.shared + self.processes + self.env_workers + again + (0 if self.on_gpu else policy)


def estimate_memory(plan: TrainingPlan, *, num_ranks: int) -> MemoryEstimate:
    """Estimate the memory of one rank; activations by `policies.openvla_oft.memory`.

    Raises:
        ValueError: `replay.capacity` is too small.
    """
    recipe, policy = plan.recipe, plan.policy
    slots = slot_fields(plan.observation_spec, plan.action_spec, plan.num_slots, store_logits=plan.store_logits)
    simulator = plan.env.simulator
    draws = recipe.env.observes == "frames"
    local_worker = SIMULATOR_BYTES * recipe.rollout.envs_per_worker if draws else PLAIN_WORKER_BYTES
    env_worker = REMOTE_WORKER_BYTES if recipe.rollout.remote else local_worker
    draws_on_gpu = simulator is not None and simulator.draws_on_gpu
    drawing = OPEN_ENVS_PER_SLOT * plan.num_slots * DRAWING_BYTES if draws_on_gpu else 0
    on_gpu = plan.device_kind == "cuda"
    process = PYTHON_TORCH_BYTES + (CUDA_HOST_BYTES if on_gpu else 0)
    servers = plan.num_servers
    env_worker += process if plan.env_workers_decide else 0
    return MemoryEstimate(
        on_gpu=on_gpu,
        frozen=policy.frozen_bytes,
        learner_state=learner_state(recipe.learner, policy.trainable_parameters, num_ranks=num_ranks),
        learner_activations=_learner_rows(recipe) * policy.training_bytes,
        inference_weights=servers * policy.trainable_bytes,
        inference_activations=servers
        * min(recipe.rollout.max_batch, plan.num_slots // servers)
        * policy.inference_bytes,
        replay=bytes_needed(ring_layout(plan).fields()),
        mailbox=MAILBOX_BUFFERS * policy.trainable_bytes,
        slots=bytes_needed(slots),
        processes=process if recipe.runtime.mode == "serial" or plan.env_workers_decide else 2 * process,
        env_worker=env_worker,
        env_workers=recipe.rollout.num_workers * env_worker,
        evaluation_workers=recipe.rollout.num_workers * local_worker,
        servers=servers,
        frozen_copies=plan.frozen_copies,
        drawing=0 if recipe.rollout.remote else drawing,
        evaluation_drawing=drawing,
        evaluation=(
            0
            if recipe.evaluation.every_optimizer_steps is None
            else policy.frozen_bytes + 2 * policy.trainable_bytes + plan.num_slots * policy.inference_bytes
        ),
    )


def _learner_rows(recipe: Recipe) -> int:
    """Return the observations whose activations are held at once, at most.

    Includes bootstrap ones if the pass with gradients computes values too. With `reuse_passes` those of all
    micro-batches are held until the loss.
    """
    loss = recipe.loss
    is_only_pass = (
        recipe.learner.accumulation == 1 or loss.advantage_moments == "running" or not loss.normalize_advantages
    )
    keeps_passes = recipe.learner.reuse_passes and not is_only_pass
    per_segment = recipe.replay.segment_length + (
        (is_only_pass or keeps_passes) and recipe.targets.needs_current_values
    )
    return (recipe.learner.batch_segments if keeps_passes else recipe.learner.micro_batch) * per_segment


def learner_state(learner: EngineSection, parameters: int, *, num_ranks: int) -> int:
    """Return bytes of weights, gradients (4 each per parameter) and two moments (8), less what DeepSpeed shards.

    Args:
        learner: strategy of the ranks.
        parameters: trained ones.
        num_ranks: of the run.
    """
    stage = learner.zero_stage if learner.strategy == "deepspeed" else 0
    gradients = 4 / (num_ranks if stage >= 2 else 1)
    moments = 8 / (num_ranks if stage >= 1 else 1)
    return int(parameters * (4 + gradients + moments))


def _memory_lines(plan: TrainingPlan, memory: MemoryEstimate, *, num_ranks: int) -> list[Line]:
    """Return every part per rank; the policy's parts under the device that holds them."""
    replay = plan.recipe.replay
    where = "GPU" if memory.on_gpu else "host"
    one, two = readable(memory.frozen), readable(2 * memory.frozen)
    copies = f"{one}, one copy for learner and inference worker (two would be {two})"
    if memory.on_gpu and plan.recipe.runtime.share_frozen == "auto":
        copies += "; two where processes cannot share GPU memory (runtime.share_frozen)"
    if plan.recipe.runtime.share_frozen is False:
        copies = f"{two}, one copy for the learner and one for the inference worker (runtime.share_frozen=false)"
    elif memory.frozen_copies == 2:
        copies = f"{two}, one copy for the learner, which ZeRO-3 takes apart, and one for the inference worker"
    lines = [Line(f"{where}: frozen weights", copies)]
    lines = [
        *(lines if memory.frozen else []),
        Line(
            f"{where}: learner",
            f"{readable(memory.learner_state)} weights, gradients and moments + {readable(memory.learner_activations)} "
            f"activations of one micro-batch",
        ),
        Line(
            f"{where}: {'deciding' if plan.env_workers_decide else 'inference worker'}",
            f"{readable(memory.inference_weights)} weights + {readable(memory.inference_activations)} activations",
        ),
        *(
            [Line(f"{where}: evaluation while training", f"{readable(memory.evaluation)}, the policy once more")]
            if memory.evaluation
            else []
        ),
        *([Line("GPU: drawing", f"about {readable(memory.drawing)}, assumed")] if memory.on_gpu else []),
        Line("host: replay ring", f"{replay.capacity:,} decisions, {readable(memory.replay)}"),
        Line("host: weight mailbox", f"{readable(memory.mailbox)}"),
        Line(
            "host: learner" if plan.env_workers_decide else "host: learner and inference",
            f"about {readable(memory.processes)} before they hold anything",
        ),
        Line("host: env workers", f"about {readable(memory.env_workers)}, {readable(memory.env_worker)} each"),
    ]
    if plan.policy.frozen_bytes:
        prefix = "GPU memory per rank" if memory.on_gpu else "on a GPU it would be"
        lines.append(Line(prefix, f"about {readable(memory.gpu)}: {cards(memory.gpu)}"))
    each = f"{readable(memory.host)} per rank, " if num_ranks > 1 else ""
    return [*lines, Line("host memory in all", f"about {each}{readable(num_ranks * memory.host)}")]


def cards(num_bytes: int) -> str:
    """Return the smallest usual card with that much memory, in words."""
    fitting = [size for size in GPU_GIGABYTES if num_bytes <= size * 10**9]
    return f"a card of {fitting[0]} GB or more" if fitting else f"more than one card of {GPU_GIGABYTES[-1]} GB has"


def _tasks(plan: TrainingPlan) -> str:
    tasks = plan.env.tasks
    return f"{tasks[0].suite}, {len(tasks)} task(s): {', '.join(str(task.task_id) for task in tasks)}"


def _places(plan: TrainingPlan, *, num_ranks: int) -> str:
    """Return how many simulators work at the same time on each other machine, in words."""
    rollout = plan.recipe.rollout
    workers = [rollout.remote[index % len(rollout.remote)] for index in range(num_ranks * rollout.num_workers)]
    counts = {address: workers.count(address) * rollout.envs_per_worker for address in dict.fromkeys(rollout.remote)}
    return ", ".join(f"{count} on {address}" for address, count in counts.items())


def _family(spec: ActionSpec) -> str:
    return "a Gaussian each" if spec.num_bins is None else f"{spec.num_bins} bins"
