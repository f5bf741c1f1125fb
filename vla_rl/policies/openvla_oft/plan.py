"""Plan of the policy, made without its weights before any process starts; whether it can be trained at all."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from vla_rl.policies.image_transforms import frame_transform
from vla_rl.policies.kind import PolicyContext, PolicyPlan
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.flops import decision_flops
from vla_rl.policies.openvla_oft.memory import ActivationMemory, activation_memory
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.parameters import Sizes, sizes_of

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection

_MIB = 1024**2


def plan_openvla_oft(section: OpenVLAOFTSection, context: PolicyContext) -> PolicyPlan:
    """Validate a choice of policy and describe it, reading a checkpoint's small files and headers.

    Raises:
        ValueError: not a directory, files missing, another architecture, an L1 head that is not accepted, unknown
            statistics, a number of cameras the checkpoint was not trained on.
    """
    build = partial(build_openvla_oft, section, context)
    policy = build(device="cpu", empty=True)
    sizes, activations = sizes_of(policy), _activations(policy, bf16=context.bf16)
    flops = decision_flops(
        policy.model.config,
        num_tokens=num_tokens(policy, int(policy.prompt_lengths.max())),
        num_images=context.num_images,
    )
    return PolicyPlan(
        build=build,
        observation_spec=policy.observation_spec,
        action_spec=policy.action_spec,
        transform=frame_transform(
            policy.source.profile.image_transform, output_size=policy.observation_spec.image_size
        ),
        trainable_parameters=sizes.trainable,
        frozen_parameters=sizes.frozen,
        trainable_bytes=sizes.trainable_bytes,
        frozen_bytes=sizes.frozen_bytes,
        training_bytes=activations.training,
        inference_bytes=activations.inference,
        update_flops=flops.update(train_backbone=section.train_backbone),
        inference_flops=flops.forward,
        statistics=policy.statistics.key,
        is_regression=policy.is_regression,
        text=_in_words(policy, sizes),
    )


def num_tokens(policy: OpenVLAOFTPolicy, prompt: int) -> int:
    """Return the tokens of the sequence around a prompt of so many."""
    config = policy.model.config
    context = 1 + policy.observation_spec.num_images * config.num_patches + int(policy.source.proprio)  # BOS first
    return context + prompt - 1 + config.num_action_tokens + int(policy.source.profile.keep_stop)


def _in_words(policy: OpenVLAOFTPolicy, sizes: Sizes) -> str:
    """Return one line for people."""
    profile, observed = policy.source.profile, policy.observation_spec
    mebibytes = (sizes.trainable_bytes + sizes.frozen_bytes) / _MIB
    return (
        f"OpenVLA-OFT (profile {profile.name}): {observed.num_images} image(s) of {observed.image_size} pixels by "
        f"transform {profile.image_transform}, statistics {policy.statistics.key}, {sizes.trainable:,} trained and "
        f"{sizes.frozen:,} frozen parameters in {mebibytes:,.0f} MiB"
        + ("; actions from its L1 head, nothing is sampled" if policy.is_regression else "")
        + profile.sampling_in_words
    )


def _activations(policy: OpenVLAOFTPolicy, *, bf16: bool) -> ActivationMemory:
    config, section = policy.model.config, policy.section
    return activation_memory(
        config,
        num_tokens=num_tokens(policy, int(policy.prompt_lengths.max())),
        num_images=policy.observation_spec.num_images,
        bytes_per_value=2 if bf16 or policy.model.dtype == torch.bfloat16 else 4,
        adapted=() if section.lora is None else section.lora.targets,
        train_backbone=section.train_backbone,
        gradient_checkpointing=section.gradient_checkpointing,
    )
