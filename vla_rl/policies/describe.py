"""Description of a policy, and whether it can be trained at all, without its weights, before any process starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from vla_rl.policies.openvla_oft.flops import DecisionFlops, decision_flops
from vla_rl.policies.openvla_oft.memory import ActivationMemory, activation_memory
from vla_rl.types import ActionSpec, ObservationSpec, PolicyBuilder

if TYPE_CHECKING:
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy

_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """Shapes, sizes and conventions of a policy."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    profile: str
    image_transform: str  # name for `image_transforms.frame_transform`
    statistics_key: str  # key in the checkpoint
    proprio: bool  # True: the state is an input
    is_regression: bool  # actions come from an L1 head: nothing is sampled, nothing can be trained
    training_temperature: float | None  # temperature of the checkpoint's authors, for information
    trainable_parameters: int
    frozen_parameters: int
    trainable_bytes: int
    frozen_bytes: int
    activations: ActivationMemory  # per decision
    flops: DecisionFlops  # at the longest prompt

    def __str__(self) -> str:
        """One line for people."""
        mebibytes = (self.trainable_bytes + self.frozen_bytes) / _MIB
        return (
            f"OpenVLA-OFT (profile {self.profile}): {self.observation_spec.num_images} image(s) of "
            f"{self.observation_spec.image_size} pixels by transform {self.image_transform}, "
            f"statistics {self.statistics_key}, {self.trainable_parameters:,} trained and "
            f"{self.frozen_parameters:,} frozen parameters in {mebibytes:,.0f} MiB"
            + ("; actions from its L1 head, nothing is sampled" if self.is_regression else "")
            + ("" if self.training_temperature is None else f"; its authors sample at {self.training_temperature}")
        )


def describe_openvla_oft(builder: PolicyBuilder, *, bf16: bool = False) -> PolicySummary:
    """Validate a choice of policy and describe it.

    Args:
        builder: a partial of `build.build_openvla_oft`; it is called with `empty=True`, which reads no weights.
        bf16: compute the forward pass in bfloat16 although the weights may be float32.

    Raises:
        ValueError: not a directory, files missing, another architecture, an L1 head that is not accepted, unknown
            statistics, a number of cameras the checkpoint was not trained on.
    """
    return _summary(cast("OpenVLAOFTPolicy", builder(device="cpu", empty=True)), bf16=bf16)


def _summary(policy: OpenVLAOFTPolicy, *, bf16: bool) -> PolicySummary:
    trainable_parameters, trainable_bytes = _size(policy, trainable=True)
    frozen_parameters, frozen_bytes = _size(policy, trainable=False)
    profile = policy.source.profile
    return PolicySummary(
        observation_spec=policy.observation_spec,
        action_spec=policy.action_spec,
        profile=profile.name,
        image_transform=profile.image_transform,
        statistics_key=policy.statistics.key,
        proprio=policy.source.proprio,
        is_regression=policy.is_regression,
        training_temperature=profile.temperature,
        trainable_parameters=trainable_parameters,
        frozen_parameters=frozen_parameters,
        trainable_bytes=trainable_bytes,
        frozen_bytes=frozen_bytes,
        activations=_activations(policy, bf16=bf16),
        flops=decision_flops(
            policy.model.config,
            num_tokens=num_tokens(policy, int(policy.prompt_lengths.max())),
            num_images=policy.observation_spec.num_images,
        ),
    )


def num_tokens(policy: OpenVLAOFTPolicy, prompt: int) -> int:
    """Return the tokens of the sequence around a prompt of so many."""
    config = policy.model.config
    context = 1 + policy.observation_spec.num_images * config.num_patches + int(policy.source.proprio)  # BOS first
    return context + prompt - 1 + config.num_action_tokens + int(policy.source.profile.keep_stop)


def _activations(policy: OpenVLAOFTPolicy, *, bf16: bool) -> ActivationMemory:
    config, choices = policy.model.config, policy.training_choices
    num_images = policy.observation_spec.num_images
    return activation_memory(
        config,
        num_tokens=num_tokens(policy, int(policy.prompt_lengths.max())),
        num_images=num_images,
        bytes_per_value=2 if bf16 or policy.model.dtype == torch.bfloat16 else 4,
        adapted=() if choices.lora is None else choices.lora.targets,
        train_backbone=choices.train_backbone,
        gradient_checkpointing=policy.gradient_checkpointing,
    )


def _size(policy: nn.Module, *, trainable: bool) -> tuple[int, int]:
    """Return number and bytes of the trained (or the frozen) parameters."""
    chosen = [parameter for parameter in policy.parameters() if parameter.requires_grad is trainable]
    count = sum(parameter.numel() for parameter in chosen)
    return count, sum(parameter.numel() * parameter.element_size() for parameter in chosen)
