"""From a recipe to plain arguments: what will be built, how large it is, and whether it can be, before anything starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.envs.build import (
    SimulatorReport,
    build_libero,
    build_toy,
    check_simulator,
    libero_horizon,
    libero_tasks,
    num_init_states,
    toy_spec,
)
from vla_rl.policies.build import LoraSettings, PolicySummary, build_mlp, build_openvla_oft, describe_policy
from vla_rl.recipe import LiberoSection, OpenVLAOFTSection, Recipe, ToySection
from vla_rl.types import ActionSpec, Environment, FrameTransform, ObservationSpec, PolicyBuilder, TaskInfo

if TYPE_CHECKING:
    from vla_rl.recipe import MLPSection

OPEN_ENVS_PER_SLOT = 2  # simulators a slot keeps open when it plays several tasks
EnvBuilder = Callable[[], Environment]


@dataclass(frozen=True, slots=True)
class EnvPlan:
    """The environments of a run or an evaluation, one entry per task in every sequence."""

    tasks: tuple[TaskInfo, ...]
    builders: tuple[EnvBuilder, ...]
    num_init_states: tuple[int | None, ...]
    horizon: int  # control steps of the longest episode
    deviations: tuple[str, ...]  # from the benchmark's protocol, in words
    simulator: SimulatorReport | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe in plain values."""

    recipe: Recipe
    env: EnvPlan
    build_policy: PolicyBuilder
    policy: PolicySummary
    transform: FrameTransform | None
    device: str

    @property
    def observation_spec(self) -> ObservationSpec:
        """What is stored per observation."""
        return self.policy.observation_spec

    @property
    def action_spec(self) -> ActionSpec:
        """What is decided per decision."""
        return self.policy.action_spec

    @property
    def num_slots(self) -> int:
        """Env slots of one cell."""
        return self.recipe.rollout.num_workers * self.recipe.rollout.envs_per_worker

    @property
    def max_episode_decisions(self) -> int:
        """Decisions of the longest episode."""
        return math.ceil(self.env.horizon / self.action_spec.chunk_size)

    @property
    def store_logits(self) -> bool:
        """Whether the behaviour's distributions are stored: the exact KL needs them."""
        return self.recipe.loss.kl_coefficient > 0

    @property
    def batch_segments(self) -> int:
        """Segments of one optimizer step on one rank."""
        return self.recipe.learner.micro_batch * self.recipe.learner.accumulation

    @property
    def threads(self) -> int:
        """Torch threads of the learner and of the inference worker."""
        asked = self.recipe.runtime.threads_per_process
        return asked or max(1, len(os.sched_getaffinity(0)) // 2)


def make_plan(recipe: Recipe) -> Plan:
    """Turn a recipe into plain values and check everything that can be checked without starting a process.

    Raises:
        ValueError: naming the field, the rule, what was found and what is allowed.
    """
    device = resolve_device(recipe)
    render_size, transform, policy, build = _plan_policy(recipe, device)
    env = plan_env(recipe, render_size=render_size)
    return Plan(recipe=recipe, env=env, build_policy=build, policy=policy, transform=transform, device=device)


def resolve_device(recipe: Recipe) -> str:
    """The torch device of this rank: `runtime.device`, or a GPU where there is one.

    Raises:
        ValueError: `runtime.device` is cuda and torch sees none.
    """
    import torch

    if recipe.runtime.device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    if recipe.runtime.device == "cuda":
        raise ValueError(
            "runtime.device: cuda was asked for, but torch sees no GPU. Allowed: auto, cpu, cuda. "
            "Use runtime.device=cpu, or install a torch built for your CUDA driver."
        )
    return "cpu"


def plan_env(
    recipe: Recipe,
    *,
    render_size: int,
    task_ids: Sequence[int] | None = None,
    init_states: str | None = None,
    horizon: int | None = None,
    suite: str | None = None,
) -> EnvPlan:
    """The environments of a recipe, or of an evaluation of its policy.

    Args:
        recipe: of the run.
        render_size: pixels a side that cameras render.
        task_ids: instead of the recipe's.
        init_states: instead of the recipe's.
        horizon: instead of the recipe's.
        suite: instead of the recipe's; LIBERO only.
    """
    section = recipe.env
    if isinstance(section, ToySection):
        return _plan_toy(section, task_ids=task_ids, horizon=horizon)
    return _plan_libero(
        section,
        render_size=render_size,
        task_ids=task_ids,
        init_states=init_states or section.init_states,
        horizon=horizon or section.horizon,
        suite=suite or section.suite,
    )


def _plan_toy(section: ToySection, *, task_ids: Sequence[int] | None, horizon: int | None) -> EnvPlan:
    ids = list(section.tasks if task_ids is None else task_ids)
    horizon = horizon or section.horizon
    builders = tuple(
        partial(
            build_toy,
            task_id=task_id,
            horizon=horizon,
            chunk_size=section.chunk_size,
            image_size=section.image_size,
            step_seconds=section.step_seconds,
        )
        for task_id in ids
    )
    return EnvPlan(
        tasks=tuple(TaskInfo("toy", task_id, f"reach_{task_id}", "reach the target") for task_id in ids),
        builders=builders,
        num_init_states=(None,) * len(ids),
        horizon=horizon,
        deviations=(),
        simulator=None,
    )


def _plan_libero(
    section: LiberoSection,
    *,
    render_size: int,
    task_ids: Sequence[int] | None,
    init_states: str,
    horizon: int | None,
    suite: str,
) -> EnvPlan:
    simulator = check_simulator(gl=section.gl, assets=section.assets)
    known = libero_tasks(suite)
    ids = list(task_ids) if task_ids is not None else (section.task_ids if suite == section.suite else range(len(known)))
    standard_horizon = libero_horizon(suite)
    builders = tuple(
        partial(
            build_libero,
            suite=suite,
            task_id=task_id,
            assets=section.assets,
            render_size=render_size,
            cameras=tuple(section.cameras),
            init_states=init_states,
            horizon=horizon or standard_horizon,
            gl=section.gl,
        )
        for task_id in ids
    )
    deviations = list(simulator.deviations)
    if horizon not in (None, standard_horizon):
        deviations.append(f"horizon {horizon} control steps instead of {standard_horizon}")
    if init_states != "standard":
        deviations.append(f"initial states: {init_states} instead of the benchmark's 50")
    return EnvPlan(
        tasks=tuple(known[task_id] for task_id in ids),
        builders=builders,
        num_init_states=tuple(num_init_states(suite, task_id, init_states) for task_id in ids),
        horizon=horizon or standard_horizon,
        deviations=tuple(deviations),
        simulator=simulator,
    )


def _plan_policy(recipe: Recipe, device: str) -> tuple[int, FrameTransform | None, PolicySummary, PolicyBuilder]:
    """Render size, image transform, summary and builder of the policy."""
    section = recipe.policy
    if isinstance(section, OpenVLAOFTSection):
        return _plan_openvla_oft(recipe, section, device)
    return _plan_mlp(recipe, section)
