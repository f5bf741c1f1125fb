"""Play the episodes of an evaluation in a cell, from a central queue; episodes of a dead worker are retried."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_rl.errors import preflight
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult
from vla_rl.ipc.memory_check import NoRoomError
from vla_rl.policies.devices import use_device
from vla_rl.run.assembly import AnyCell, make_cell, make_memory, trainable_tensors
from vla_rl.run.plan import Plan
from vla_rl.run.signals import heed_signals
from vla_rl.run.trained_network import load_trained
from vla_rl.workers.episodes import EpisodeJob, EpisodeRecord


def evaluation_jobs(plan: Plan, *, episodes_per_task: int, seeds: Sequence[int]) -> list[EpisodeJob]:
    """Return every (task, seed, initial state) once, task by task, so that workers rarely change their simulator.

    Raises:
        ValueError: more episodes per task than there are initial states.
    """
    for task, count in zip(plan.env.tasks, plan.env.num_init_states, strict=True):
        if count is not None and episodes_per_task > count:
            raise ValueError(
                f"--episodes-per-task: {episodes_per_task} were asked for, but {task.suite} task {task.task_id} has "
                f"{count} {init_states(plan)} initial states; allowed are 1 to {count}"
            )
    triples = [
        (task, seed, state)
        for task in range(len(plan.env.tasks))
        for seed in seeds
        for state in range(episodes_per_task)
    ]
    return [
        EpisodeJob(
            task_index=task,
            init_state=state,
            seed=seed,
            job_id=number,
            sampling_seed=_sampling_seed(plan, task, state, seed),
        )
        for number, (task, seed, state) in enumerate(triples)
    ]


def _sampling_seed(plan: Plan, task_index: int, init_state: int, seed: int) -> int:
    """Return the seed of an episode's sampled actions: a function of what identifies the episode, and of nothing else.

    An episode is then the same after an interruption, with any number of workers, and beside any other episodes.
    """
    task = plan.env.tasks[task_index]
    states = zlib.crc32(f"{task.suite} {init_states(plan)}".encode())
    return int(np.random.SeedSequence([seed, task.task_id, init_state, states]).generate_state(1, np.uint64)[0])


def init_states(plan: Plan) -> str:
    """Return the set in which initial states are counted."""
    return plan.setup.env.init_state_set


def play(
    plan: Plan,
    checkpoint: Path | None,
    jobs: Sequence[EpisodeJob],
    log_of: Callable[[EpisodeJob], EpisodeLog],
    *,
    greedy: bool,
    log_dir: Path,
    on_episode: Callable[[EpisodeResult], None],
) -> None:
    """Play the episodes that are not in their log yet, and append each one immediately.

    Args:
        plan: of the evaluation.
        checkpoint: trained tensors; None for the plan's policy unchanged.
        jobs: all episodes.
        log_of: returns the log in which an episode is or will be.
        greedy: take the most likely tokens; otherwise each job has the seed of its sampling.
        log_dir: folder of the processes' logs.
        on_episode: called after every episode.

    Raises:
        UserError: the checkpoint does not fit the policy, or shared memory is too small.
        CellFailureError: a part failed for good; played episodes are kept.
    """
    todo = [job for job in jobs if _result_key(plan, job) not in log_of(job).done]
    if not todo:
        return
    plan = fit_slots(plan, len(todo))
    use_device(plan.device)
    with preflight():
        policy = plan.policy.build(device="cpu")
        if checkpoint is not None:
            load_trained(checkpoint, policy, plan.policy)
        try:
            memory = make_memory(plan, policy, ring_capacity=None)
        except NoRoomError as error:
            raise NoRoomError(error.found, settings="--workers") from error
    finished: list[EpisodeRecord] = []
    try:
        with preflight():
            plan.setup.policy.check(policy, way_on="--no-self-test")
        memory.mailbox.publish(0, trainable_tensors(policy))
        with preflight():
            cell = make_cell(
                plan,
                plan.env,
                memory,
                log_dir=log_dir,
                greedy=greedy,
                seed=None,
                on_episode=finished.append,
                jobs=iter(todo),
            )
        try:
            cell.start()
            _collect(plan, cell, finished, log_of, on_episode)
        finally:
            cell.close()
    finally:
        memory.close()


def fit_slots(plan: Plan, episodes: int) -> Plan:
    """Return the plan with no more workers than episodes, and one slot if every worker plays a single episode."""
    rollout = plan.setup.rollout
    workers = min(rollout.num_workers, episodes)
    slots = min(rollout.envs_per_worker, -(-episodes // workers))
    fitting = rollout.model_copy(update={"num_workers": workers, "envs_per_worker": slots})
    return replace(plan, setup=plan.setup.model_copy(update={"rollout": fitting}))


def _collect(
    plan: Plan,
    cell: AnyCell,
    finished: list[EpisodeRecord],
    log_of: Callable[[EpisodeJob], EpisodeLog],
    on_episode: Callable[[EpisodeResult], None],
) -> None:
    # Checked in this order: once the cell has finished, all its records are in the list.
    while not cell.finished or finished:
        heed_signals()
        cell.raise_if_failed()
        while finished:
            record = finished.pop(0)
            result = _result(plan, record)
            log_of(record.job).append(result)
            on_episode(result)
        if not cell.finished:
            cell.collect()


def result_keys(plan: Plan, jobs: Sequence[EpisodeJob]) -> set[tuple[str, int, str, int, int]]:
    """Return the keys under which the jobs' episodes are logged."""
    return {_result_key(plan, job) for job in jobs}


def _result_key(plan: Plan, job: EpisodeJob) -> tuple[str, int, str, int, int]:
    task = plan.env.tasks[job.task_index]
    return (task.suite, task.task_id, init_states(plan), job.init_state, job.seed)


def _result(plan: Plan, record: EpisodeRecord) -> EpisodeResult:
    task = plan.env.tasks[record.job.task_index]
    return EpisodeResult(
        suite=task.suite,
        task_id=task.task_id,
        init_state=record.job.init_state,
        seed=record.job.seed,
        success=record.success,
        env_steps=record.env_steps,
        episode_return=record.episode_return,
        seconds=record.seconds,
        init_states=init_states(plan),
    )
