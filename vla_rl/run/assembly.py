"""Shared memory and processes of a cell, assembled from a plan, for training and evaluation alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from vla_rl.credit import GroupNeeds
from vla_rl.envs.kind import EnvPlan
from vla_rl.ipc.counters import CellCounters
from vla_rl.ipc.cuda_memory import SharingError
from vla_rl.ipc.mailbox import WeightMailbox
from vla_rl.ipc.shared_arrays import SharedArrays
from vla_rl.ipc.shared_weights import NotShared, SharedWeights, SharedWeightsHandle, share_tensors
from vla_rl.ipc.slots import ExchangeSlots, slot_fields
from vla_rl.learner.optimizer import trainable_parameters
from vla_rl.policies.parameters import assign_parameters
from vla_rl.remote.identity import identity_here
from vla_rl.remote.stand_in import FarSide, build_stand_in
from vla_rl.replay.ring import ReplayRing
from vla_rl.run.plan import OPEN_ENVS_PER_SLOT, Plan
from vla_rl.workers.cell import Cell, CellLimits
from vla_rl.workers.env_runner import EnvPool, EnvRunner
from vla_rl.workers.env_worker import EnvWorkerSettings, scheduled_jobs, set_variables
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord, Groups
from vla_rl.workers.inference_worker import InferenceSettings, WeightLinks, make_server, report, tensors_of
from vla_rl.workers.serial import SerialCell
from vla_rl.workers.worker_counters import WorkerCounters


class AnyCell(Protocol):
    """Interface of a cell, in one process or in many."""

    restarts: int
    dropped_episodes: int

    @property
    def finished(self) -> bool:
        """Return whether all jobs are done."""
        ...

    def start(self) -> None:
        """Start collecting."""
        ...

    def collect(self) -> None:
        """Collect some more experience."""
        ...

    def raise_if_failed(self) -> None:
        """Raise the first failure."""
        ...

    def close(self) -> None:
        """Stop everything."""
        ...


@dataclass(slots=True)
class CellMemory:
    """The shared memory of one cell. Owned by the rank process."""

    slots: SharedArrays
    counters: CellCounters
    mailbox: WeightMailbox
    frozen: SharedWeights | None
    ring: ReplayRing | None
    _stack: ExitStack

    def close(self) -> None:
        """Release everything, after the cell's processes have ended; safe to call twice."""
        self._stack.close()


def trainable_tensors(policy: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that training changes, by parameter name."""
    return {name: p.detach() for name, p in trainable_parameters(policy).items()}


def share_frozen(policy: nn.Module, *, map_policy: bool = True, device: str = "cpu") -> SharedWeights | None:
    """Put the frozen parameters of a policy into shared memory, for the inference worker to map.

    Args:
        policy: the learner's.
        map_policy: make its own parameters views of the shared memory too, so that they exist once. Not possible under
            ZeRO-3, which shards every parameter, so that the inference worker needs whole ones beside it.
        device: device of the shared memory and of the rest of the policy. Because the policy is built on the CPU and
            moved here, the frozen weights are never on a GPU twice, even at the start.

    Returns:
        None if nothing is frozen.
    """
    parameters = dict(policy.named_parameters())
    frozen = {name: p.detach() for name, p in parameters.items() if not p.requires_grad}
    shared = share_tensors(frozen, device=torch.device(device)) if frozen else None
    if shared is not None and map_policy:
        assign_parameters(policy, {**{name: p.detach() for name, p in parameters.items()}, **shared.tensors()})
    policy.to(device)
    return shared


def make_memory(plan: Plan, policy: nn.Module, *, ring_capacity: int | None) -> CellMemory:
    """Allocate the shared memory of a cell around a policy, which moves to the plan's device.

    Args:
        plan: plan of the run or the evaluation.
        policy: the learner's policy, or the one to evaluate.
        ring_capacity: decisions of the replay ring; None without one, because nothing is learned.

    Raises:
        ValueError: it does not fit.
    """
    with ExitStack() as stack:
        ring = None
        if ring_capacity is not None:
            ring = ReplayRing.create(
                observation_spec=plan.observation_spec,
                action_spec=plan.action_spec,
                num_envs=plan.num_slots,
                capacity=ring_capacity,
                max_episode_decisions=plan.max_episode_decisions,
                store_logits=plan.store_logits,
            )
            stack.callback(ring.close)
        fields = slot_fields(
            plan.observation_spec, plan.action_spec, num_slots=plan.num_slots, store_logits=plan.store_logits
        )
        slots = SharedArrays.create("slots", fields)
        stack.callback(slots.close)
        counters = CellCounters.create(num_env_workers=plan.setup.rollout.num_workers, num_servers=plan.num_servers)
        stack.callback(counters.close)
        frozen = None
        if plan.setup.runtime.share_frozen is False:
            policy.to(plan.device)
        else:
            frozen = share_frozen(policy, map_policy=not plan.shards_frozen, device=plan.device)
        if frozen is not None:
            stack.callback(frozen.close)
        layout = {name: (tuple(t.shape), t.dtype) for name, t in trainable_tensors(policy).items()}
        mailbox = WeightMailbox.create(layout)
        stack.callback(mailbox.close)
        return CellMemory(slots, counters, mailbox, frozen, ring, stack.pop_all())


def make_cell(  # noqa: PLR0913 - the parts of a cell, by name
    plan: Plan,
    env: EnvPlan,
    memory: CellMemory,
    *,
    log_dir: Path,
    greedy: bool,
    seed: int | None,
    on_episode: Callable[[EpisodeRecord], None],
    rank: int = 0,
    num_ranks: int = 1,
    first_episode: int = 0,
    groups: GroupNeeds | None = None,
    jobs: Iterator[EpisodeJob] | None = None,
) -> AnyCell:
    """Create the processes of a cell (async) or the same objects in this process (serial); `start` runs them.

    Args:
        plan: plan of the run.
        env: environments to play in; an evaluation's differ from the plan's.
        memory: the cell's shared memory.
        log_dir: folder of the children's logs.
        greedy: take the most likely tokens.
        seed: seed of sampling, already different for every rank; None: every job has its own.
        on_episode: called with every finished episode.
        rank: rank of this cell.
        num_ranks: number of cells.
        first_episode: position at which every slot enters the training schedule.
        groups: how episodes with the same start are played in the training schedule; None: every one has its own.
        jobs: an evaluation's episodes; None for the training schedule.

    Raises:
        ValueError: the recipe insists on sharing the frozen weights, which cannot be shared here.
    """
    inference = _inference_settings(plan, log_dir, greedy=greedy, seed=seed)
    variables = env.worker_variables(plan.device)
    workers = [
        _env_worker_settings(
            plan,
            env,
            worker,
            log_dir,
            rank=rank,
            num_ranks=num_ranks,
            first_episode=first_episode,
            groups=groups,
            queue_jobs=jobs is not None,
            variables=variables,
        )
        for worker in range(plan.setup.rollout.num_workers)
    ]
    if plan.setup.rollout.remote:
        workers = _on_other_machines(plan, env, workers, rank=rank)
    if plan.setup.runtime.mode == "serial":
        return _serial_cell(plan, env, memory, inference, workers, on_episode, jobs)
    rollout = plan.setup.rollout
    return Cell(
        inference=inference,
        env_workers=workers,
        slots=memory.slots.handle,
        counters=memory.counters,
        weights=WeightLinks(memory.mailbox.handle, _frozen_handle(plan, memory)),
        ring=memory.ring.handle if memory.ring is not None and jobs is None else None,
        limits=CellLimits(
            step_timeout_s=rollout.step_timeout_s,
            start_timeout_s=rollout.start_timeout_s,
            max_restarts=rollout.max_restarts,
        ),
        on_episode=on_episode,
        jobs=jobs,
        env_workers_decide=plan.env_workers_decide,
    )


def _on_other_machines(
    plan: Plan, env: EnvPlan, workers: Sequence[EnvWorkerSettings], *, rank: int
) -> list[EnvWorkerSettings]:
    """Return env workers whose simulators are elsewhere, dealt out to `rollout.remote` over all ranks."""
    rollout = plan.setup.rollout
    expected = identity_here(env.identity)
    settings = []
    for own in workers:
        far = FarSide(
            address=rollout.remote[(rank * len(workers) + own.worker_index) % len(rollout.remote)],
            identity=env.identity,
            expected=expected,
            start_timeout_s=rollout.start_timeout_s,
            step_timeout_s=rollout.step_timeout_s,
        )
        builders = tuple(partial(build_stand_in, build, far) for build in env.builders)
        settings.append(replace(own, builders=builders, slot_limit_s=far.longest_call_s, variables={}))
    return settings


def _serial_cell(
    plan: Plan,
    env: EnvPlan,
    memory: CellMemory,
    inference: InferenceSettings,
    workers: Sequence[EnvWorkerSettings],
    on_episode: Callable[[EpisodeRecord], None],
    jobs: Iterator[EpisodeJob] | None,
) -> SerialCell:
    set_variables(workers[0].variables)
    slots = ExchangeSlots.view(memory.slots)
    frozen = _not_shared(plan) if memory.frozen is None else memory.frozen
    server = make_server(inference, memory.mailbox, slots, tensors_of(frozen))
    slot_ids = [slot for settings in workers for slot in settings.slot_ids]
    ring = memory.ring if jobs is None else None
    schedules = {slot: scheduled_jobs(own, slot, incarnation=0, ring=ring) for own in workers for slot in own.slot_ids}
    runner = EnvRunner(
        slots=slots,
        slot_ids=slot_ids,
        pool=EnvPool(env.builders, max_open_per_slot=workers[0].max_open_envs_per_slot),
        transform=plan.transform,
        jobs=schedules if jobs is None else dict.fromkeys(slot_ids, jobs),
        writers={slot: ring.writer(slot) for slot in slot_ids} if ring is not None else {},
        counters=WorkerCounters(memory.counters, 0),
        on_episode=on_episode,
    )
    return SerialCell(runner, server, report=lambda served: report(served, memory.counters))


def _frozen_handle(plan: Plan, memory: CellMemory) -> SharedWeightsHandle | NotShared | None:
    """Return the inference worker's handle of the frozen weights, or why there is none."""
    if memory.frozen is None:
        return _not_shared(plan)
    try:
        return memory.frozen.handle
    except SharingError as error:
        if plan.setup.runtime.share_frozen is True:
            raise ValueError(f"runtime.share_frozen is true, but {error}") from error
        return NotShared(str(error), asked_for=False)


def _not_shared(plan: Plan) -> NotShared | None:
    """Return why no memory is shared: by request, or because nothing is frozen."""
    return NotShared("runtime.share_frozen is false", asked_for=True) if plan.policy.frozen_parameters else None


def _inference_settings(plan: Plan, log_dir: Path, *, greedy: bool, seed: int | None) -> InferenceSettings:
    rollout = plan.setup.rollout
    return InferenceSettings(
        build=plan.policy.build,
        device=plan.device,
        bf16=plan.setup.precision == "bf16",
        greedy=greedy,
        seed=seed,
        max_batch=min(rollout.max_batch, plan.num_slots),
        max_wait_s=rollout.max_wait_ms / 1000,
        log_path=log_dir / "inference_worker.log",
        threads=plan.server_threads,
        compile=rollout.compile,
        must_share=plan.setup.runtime.share_frozen is True,
    )


def _env_worker_settings(
    plan: Plan,
    env: EnvPlan,
    worker: int,
    log_dir: Path,
    *,
    rank: int,
    num_ranks: int,
    first_episode: int,
    groups: GroupNeeds | None,
    queue_jobs: bool,
    variables: Mapping[str, str],
) -> EnvWorkerSettings:
    per_worker = plan.setup.rollout.envs_per_worker
    first = worker * per_worker
    return EnvWorkerSettings(
        worker_index=worker,
        slot_ids=tuple(range(first, first + per_worker)),
        first_env_index=rank * plan.num_slots + first,
        num_envs=num_ranks * plan.num_slots,
        builders=env.builders,
        num_init_states=env.num_init_states,
        transform=plan.transform,
        seed=plan.setup.seed,
        max_open_envs_per_slot=1 if queue_jobs else OPEN_ENVS_PER_SLOT,  # a queue visits each task once
        first_episode=first_episode,
        groups=None
        if groups is None
        else Groups(
            groups.candidates, plan.num_slots, groups.max_lead, tuple(f"{it.suite}: {it.name}" for it in env.tasks)
        ),
        queue_jobs=queue_jobs,
        variables=variables,
        log_path=log_dir / f"env_worker_{worker}.log",
    )
