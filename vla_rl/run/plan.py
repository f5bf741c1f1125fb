"""From a recipe to plain arguments: what will be built, how large it is, and whether it can be built at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from vla_rl.envs import metaworld, toy
from vla_rl.envs.build import (
    SimulatorReport,
    build_libero,
    build_metaworld,
    build_toy,
    check_simulator,
    libero_tasks,
    num_init_states,
)
from vla_rl.envs.libero.asset_files import check_task_assets
from vla_rl.libero_suites import SUITES
from vla_rl.policies.build import build_mlp, build_openvla_oft
from vla_rl.policies.describe import describe_openvla_oft
from vla_rl.policies.image_transforms import frame_transform
from vla_rl.policies.lora import LoraSettings
from vla_rl.recipe import (
    LiberoSection,
    MetaworldSection,
    MLPSection,
    OpenVLAOFTSection,
    Recipe,
    ToySection,
)
from vla_rl.types import ActionSpec, Environment, FrameTransform, ObservationSpec, PolicyBuilder, TaskInfo

if TYPE_CHECKING:
    from vla_rl.envs.libero.env import Camera

OPEN_ENVS_PER_SLOT = 2  # simulators a slot keeps open when it plays several tasks
CAMERAS: tuple[Camera, ...] = ("agentview", "wrist")  # all that LIBERO's policies were trained with
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
class PolicyPlan:
    """The policy of a run: how to build it, its shapes and sizes."""

    build: PolicyBuilder
    observation_spec: ObservationSpec
    action_spec: ActionSpec
    trainable_parameters: int
    frozen_parameters: int
    trainable_bytes: int
    frozen_bytes: int
    training_bytes: int  # activations of one decision in the backward pass
    inference_bytes: int  # activations of one decision in a forward pass
    text: str  # one line for people


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe in plain values."""

    recipe: Recipe
    env: EnvPlan
    policy: PolicyPlan
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
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """Kind of the torch device."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def shards_frozen(self) -> bool:
        """Whether the engine takes frozen parameters apart too, so that the inference worker cannot share them."""
        return self.recipe.learner.strategy == "deepspeed" and self.recipe.learner.zero_stage == 3

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
    policy, transform = plan_policy(recipe)
    env = _plan_env(recipe, render_size=transform.input_size if transform is not None else 0)
    return Plan(recipe=recipe, env=env, policy=policy, transform=transform, device=device)


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


def _tasks(recipe: Recipe) -> tuple[TaskInfo, ...]:
    section = recipe.env
    if isinstance(section, ToySection):
        return tuple(toy.task_info(task_id) for task_id in section.tasks)
    if isinstance(section, MetaworldSection):
        named = zip(section.task_ids, section.tasks, strict=True)
        return tuple(metaworld.task_info(task_id, name) for task_id, name in named)
    known = libero_tasks(section.suite)
    return tuple(known[task_id] for task_id in section.task_ids)


def _plan_env(recipe: Recipe, *, render_size: int) -> EnvPlan:
    section = recipe.env
    if isinstance(section, ToySection):
        return _plan_toy(section, _tasks(recipe))
    if isinstance(section, MetaworldSection):
        return _plan_metaworld(section, _tasks(recipe))
    return _plan_libero(section, _tasks(recipe), render_size=render_size)


def _plan_toy(section: ToySection, tasks: tuple[TaskInfo, ...]) -> EnvPlan:
    builders = tuple(
        partial(
            build_toy,
            task_id=task.task_id,
            horizon=section.horizon,
            chunk_size=section.chunk_size,
            step_seconds=section.step_seconds,
        )
        for task in tasks
    )
    return EnvPlan(
        tasks=tasks,
        builders=builders,
        num_init_states=(None,) * len(tasks),
        horizon=section.horizon,
        deviations=(),
        simulator=None,
    )


def _plan_metaworld(section: MetaworldSection, tasks: tuple[TaskInfo, ...]) -> EnvPlan:
    metaworld.check_installed()
    builders = tuple(
        partial(
            build_metaworld,
            name=task.name,
            task_id=task.task_id,
            horizon=section.horizon,
            chunk_size=section.chunk_size,
            reward_scale=section.reward_scale,
        )
        for task in tasks
    )
    return EnvPlan(
        tasks=tasks,
        builders=builders,
        num_init_states=(metaworld.NUM_GOALS,) * len(tasks),
        horizon=section.horizon,
        deviations=(),
        simulator=None,
    )


def _plan_libero(section: LiberoSection, tasks: tuple[TaskInfo, ...], *, render_size: int) -> EnvPlan:
    simulator = check_simulator(gl=section.gl, assets=section.assets)
    for task in tasks:
        check_task_assets(simulator.assets, task)
    standard_horizon = SUITES[section.suite].horizon
    horizon = section.horizon or standard_horizon
    builders = tuple(libero_builder(section, task, render_size=render_size, horizon=horizon) for task in tasks)
    deviations = simulator_deviations(simulator)
    if horizon != standard_horizon:
        deviations.append(f"horizon {horizon} control steps instead of {standard_horizon}")
    if section.physics != "exact":
        deviations.append(
            f"{section.physics} physics instead of LIBERO's own: one constraint solve per substep, not three"
        )
    if section.init_states != "standard":
        deviations.append(f"initial states: {section.init_states} instead of the benchmark's standard ones")
    return EnvPlan(
        tasks=tasks,
        builders=builders,
        num_init_states=tuple(num_init_states(section.suite, task.task_id, section.init_states) for task in tasks),
        horizon=horizon,
        deviations=tuple(deviations),
        simulator=simulator,
    )


def libero_builder(
    section: LiberoSection, task: TaskInfo, *, render_size: int, horizon: int, render_all: bool = False
) -> EnvBuilder:
    """Builds one LIBERO task.

    Args:
        section: of the recipe.
        task: one of its tasks.
        render_size: pixels a side that the cameras draw.
        horizon: control steps of an episode.
        render_all: for videos: draw every control step (`LiberoEnv.chunk_frames`) from all cameras, those that the
            policy sees first.
    """
    seen = tuple(section.cameras)
    unseen: tuple[Camera, ...] = tuple(camera for camera in CAMERAS if camera not in seen)
    return partial(
        build_libero,
        suite=section.suite,
        task_id=task.task_id,
        assets=section.assets,
        render_size=render_size,
        cameras=seen + unseen if render_all else seen,
        init_states=section.init_states,
        physics=section.physics,
        horizon=horizon,
        gl=section.gl,
        render="every_step" if render_all else "decision",
    )


def simulator_deviations(simulator: SimulatorReport) -> list[str]:
    """Why scores of this installation are not comparable with published ones, one sentence each."""
    deviations = list(simulator.warnings)
    if simulator.assets.kind == "proxy":
        deviations.append("built-in proxy assets instead of LIBERO's: other pictures, scores are not comparable")
    return deviations


def plan_policy(recipe: Recipe) -> tuple[PolicyPlan, FrameTransform | None]:
    """The policy of a recipe and the transform of its frames; asks for no simulator.

    Raises:
        ValueError: the checkpoint does not fit.
    """
    section = recipe.policy
    if isinstance(section, OpenVLAOFTSection):
        return _plan_openvla_oft(recipe, section, _tasks(recipe))
    return _plan_mlp(recipe, section), None


def _plan_openvla_oft(
    recipe: Recipe, section: OpenVLAOFTSection, tasks: Sequence[TaskInfo]
) -> tuple[PolicyPlan, FrameTransform]:
    assert isinstance(recipe.env, LiberoSection), "the recipe's rules pair this policy with LIBERO"
    lora = section.lora
    build = partial(
        build_openvla_oft,
        checkpoint=section.checkpoint,
        profile=section.profile,
        tasks=tuple(task.language for task in tasks),
        statistics_key=recipe.env.suite,
        num_images=len(recipe.env.cameras),
        image_size=section.image_size,
        proprio=section.proprio,
        lora=None if lora is None else LoraSettings(**lora.model_dump() | {"targets": tuple(lora.targets)}),
        train_action_rows=section.train_action_rows,
        train_backbone=section.train_backbone,
        train_proprio_projector=section.train_proprio_projector,
        value_head=section.value_head,
        detach_value=section.detach_value,
        dtype=section.dtype,
        gradient_checkpointing=section.gradient_checkpointing,
        seed=recipe.seed,
    )
    summary = describe_openvla_oft(build, bf16=recipe.learner.precision == "bf16")
    transform = frame_transform(summary.image_transform, output_size=summary.observation_spec.image_size)
    plan = PolicyPlan(
        build=build,
        observation_spec=summary.observation_spec,
        action_spec=summary.action_spec,
        trainable_parameters=summary.trainable_parameters,
        frozen_parameters=summary.frozen_parameters,
        trainable_bytes=summary.trainable_bytes,
        frozen_bytes=summary.frozen_bytes,
        training_bytes=summary.activations.training,
        inference_bytes=summary.activations.inference,
        text=str(summary),
    )
    return plan, transform


def _plan_mlp(recipe: Recipe, section: MLPSection) -> PolicyPlan:
    env = recipe.env
    assert not isinstance(env, LiberoSection), "the recipe's rules pair this policy with state environments"
    shapes = toy if isinstance(env, ToySection) else metaworld
    build = partial(
        build_mlp,
        state_dim=shapes.STATE_DIM,
        chunk_size=env.chunk_size,
        action_dim=shapes.ACTION_DIM,
        num_bins=section.num_bins if section.distribution == "categorical" else None,
        hidden_dim=section.hidden_dim,
        seed=recipe.seed,
    )
    policy = build(device="cpu", empty=True)
    parameters = list(policy.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    return PolicyPlan(
        build=build,
        observation_spec=policy.observation_spec,
        action_spec=policy.action_spec,
        trainable_parameters=count,
        frozen_parameters=0,
        trainable_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        frozen_bytes=0,
        training_bytes=0,  # some kilobytes
        inference_bytes=0,
        text=f"MLP with {count:,} parameters",
    )
