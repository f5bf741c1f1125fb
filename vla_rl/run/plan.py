"""Plan of a setup in plain values: what will be built, its size, and whether it can be built at all."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vla_rl.envs.kind import EnvPlan
from vla_rl.policies.build import build_mlp, build_openvla_oft
from vla_rl.policies.describe import describe_openvla_oft
from vla_rl.policies.image_transforms import frame_transform
from vla_rl.policies.lora import LoraSettings
from vla_rl.recipe import MLPSection, OpenVLAOFTSection, Recipe, Setup
from vla_rl.types import ActionSpec, FrameTransform, ObservationSpec, PolicyBuilder, TaskInfo

OPEN_ENVS_PER_SLOT = 2  # simulators a slot keeps open when it plays several tasks


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
    update_flops: float  # FLOPs of one decision in an update; 0 if negligible
    inference_flops: float  # FLOPs of one decision in inference, likewise
    statistics: str | None  # key of the data set that scales actions and proprioception
    is_regression: bool  # actions are computed, not sampled: no temperature, no training
    text: str  # one line for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Setup in plain values: everything that a cell is built from."""

    setup: Setup
    env: EnvPlan
    policy: PolicyPlan
    transform: FrameTransform | None
    device: str
    store_logits: bool = False  # True: store the behaviour's distributions, for the exact KL
    shards_frozen: bool = False  # True: the engine shards frozen parameters too, so that they cannot be shared

    @property
    def observation_spec(self) -> ObservationSpec:
        """Return the shapes of an observation."""
        return self.policy.observation_spec

    @property
    def action_spec(self) -> ActionSpec:
        """Return the shapes of a decision."""
        return self.policy.action_spec

    @property
    def num_slots(self) -> int:
        """Return the env slots of one cell."""
        return self.setup.rollout.num_workers * self.setup.rollout.envs_per_worker

    @property
    def max_episode_decisions(self) -> int:
        """Return the decisions of the longest episode."""
        return math.ceil(self.env.horizon / self.action_spec.chunk_size)

    @property
    def device_kind(self) -> Literal["cpu", "cuda"]:
        """Return the kind of the torch device."""
        return "cuda" if self.device.startswith("cuda") else "cpu"

    @property
    def frozen_copies(self) -> int:
        """Return the copies of the frozen weights on a device: one if shared, else learner's and inference worker's."""
        return 2 if self.shards_frozen or self.setup.runtime.share_frozen is False else 1

    @property
    def threads(self) -> int:
        """Return torch's threads of the learner and of the inference worker."""
        asked = self.setup.runtime.threads_per_process
        return asked or max(1, len(os.sched_getaffinity(0)) // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan(Plan):
    """Recipe in plain values: the plan of its setup, and the settings of learning."""

    recipe: Recipe


def make_training_plan(recipe: Recipe) -> TrainingPlan:
    """Make the plan of a training; see `make_plan`.

    Raises:
        ValueError: the recipe is not possible here; names the field, the rule, the found and the allowed value.
    """
    plan = make_plan(recipe.setup)
    return training_plan(recipe, env=plan.env, policy=plan.policy, transform=plan.transform, device=plan.device)


def training_plan(
    recipe: Recipe, *, env: EnvPlan, policy: PolicyPlan, transform: FrameTransform | None, device: str
) -> TrainingPlan:
    """Assemble the plan of a training from the parts of `Plan`."""
    return TrainingPlan(
        recipe=recipe,
        setup=recipe.setup,
        env=env,
        policy=policy,
        transform=transform,
        device=device,
        store_logits=recipe.loss.kl_coefficient > 0,
        shards_frozen=recipe.learner.strategy == "deepspeed" and recipe.learner.zero_stage == 3,
    )


def make_plan(setup: Setup, *, accept_l1_head: bool = False) -> Plan:
    """Turn a setup into plain values and check everything that can be checked without starting a process.

    Args:
        setup: setup of a run or of an evaluation.
        accept_l1_head: nothing is trained, so a checkpoint may have an L1 head.

    Raises:
        ValueError: the recipe is not possible here; names the field, the rule, the found and the allowed value.
    """
    device = resolve_device(setup.runtime.device)
    policy, transform = plan_policy(setup, accept_l1_head=accept_l1_head, draw_on=device)
    env = setup.env.plan(render_size=transform.input_size if transform is not None else 0)
    return Plan(setup=setup, env=env, policy=policy, transform=transform, device=device)


def resolve_device(asked: str) -> str:
    """Return the torch device of this rank: the one `runtime.device` names, or for auto a GPU if there is one.

    Raises:
        ValueError: `runtime.device` is cuda and torch sees none.
    """
    import torch

    if asked == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
    if asked == "cuda":
        raise ValueError(
            "runtime.device: cuda was asked for, but torch sees no GPU. Allowed: auto, cpu, cuda. "
            "Use runtime.device=cpu, or install a torch built for your CUDA driver."
        )
    return "cpu"


def plan_policy(
    setup: Setup,
    *,
    accept_l1_head: bool = False,
    tasks: Sequence[TaskInfo] | None = None,
    draw_on: str | None = None,
) -> tuple[PolicyPlan, FrameTransform | None]:
    """Plan the policy of a setup and the transform of its frames, as in `make_plan`, without a simulator.

    Args:
        setup: setup of a run or of an evaluation.
        accept_l1_head: as in `make_plan`.
        tasks: tasks whose prompts the policy reads; default: those of `env.tasks`, named by an installed hf-libero.
        draw_on: device that draws the weights of `random-7b`; default: the policy's.

    Raises:
        ValueError: the checkpoint does not fit.
    """
    section = setup.policy
    if isinstance(section, OpenVLAOFTSection):
        return _plan_openvla_oft(setup, section, accept_l1_head=accept_l1_head, tasks=tasks, draw_on=draw_on)
    return _plan_mlp(setup, section), None


def _plan_openvla_oft(
    setup: Setup,
    section: OpenVLAOFTSection,
    *,
    accept_l1_head: bool,
    tasks: Sequence[TaskInfo] | None,
    draw_on: str | None,
) -> tuple[PolicyPlan, FrameTransform]:
    lora = section.lora
    tasks = setup.env.task_infos() if tasks is None else tasks
    build = partial(
        build_openvla_oft,
        checkpoint=section.checkpoint,
        profile=section.profile,
        tasks=tuple(task.language for task in tasks),
        statistics_key=setup.env.suite_name,
        statistics=section.statistics,
        num_images=setup.env.num_images,
        image_size=section.image_size,
        proprio=section.proprio,
        lora=None if lora is None else LoraSettings(**lora.model_dump() | {"targets": tuple(lora.targets)}),
        train_action_rows=section.train_action_rows,
        train_backbone=section.train_backbone,
        train_embeddings=section.train_embeddings,
        train_proprio_projector=section.train_proprio_projector,
        value_head=section.value_head,
        detach_value=section.detach_value,
        dtype=section.dtype,
        gradient_checkpointing=section.gradient_checkpointing,
        seed=setup.seed,
        accept_l1_head=accept_l1_head,
        draw_on=draw_on,
        temperature=setup.rollout.temperature,
    )
    summary = describe_openvla_oft(build, bf16=setup.precision == "bf16")
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
        update_flops=summary.flops.update(train_backbone=section.train_backbone),
        inference_flops=summary.flops.forward,
        statistics=summary.statistics_key,
        is_regression=summary.is_regression,
        text=str(summary),
    )
    return plan, transform


def _plan_mlp(setup: Setup, section: MLPSection) -> PolicyPlan:
    states = setup.env.states
    assert states is not None, "the recipe's rules pair this policy with state environments"
    build = partial(
        build_mlp,
        state_dim=states.state_dim,
        chunk_size=states.chunk_size,
        action_dim=states.action_dim,
        num_bins=section.num_bins if section.distribution == "categorical" else None,
        hidden_dim=section.hidden_dim,
        seed=setup.seed,
        temperature=setup.rollout.temperature,
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
        update_flops=0.0,
        inference_flops=0.0,
        statistics=None,
        is_regression=False,
        text=f"MLP with {count:,} parameters",
    )
