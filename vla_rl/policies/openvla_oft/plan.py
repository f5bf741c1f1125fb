"""Plan of the policy, made without its weights before any process starts; whether it can be trained at all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vla_rl.policies.file_digest import sampled_digest
from vla_rl.policies.image_transforms import frame_transform
from vla_rl.policies.kind import Fixed, PolicyContext, PolicyPlan
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.flops import decision_flops
from vla_rl.policies.openvla_oft.memory import ActivationMemory, activation_memory
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.source import Source
from vla_rl.policies.parameters import Sizes, sizes_of
from vla_rl.section import Problem

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
        fixed=_fixed(policy, seed=context.seed),
        is_regression=policy.is_regression,
        text=_in_words(policy, sizes),
        contradictions=() if context.only_acts else tuple(_contradictions(section, policy.source, context)),
    )


def num_tokens(policy: OpenVLAOFTPolicy, prompt: int) -> int:
    """Return the tokens of the sequence around a prompt of so many."""
    config = policy.model.config
    context = 1 + policy.observation_spec.num_images * config.num_patches + int(policy.source.proprio)  # BOS first
    return context + prompt - 1 + config.num_action_tokens + int(policy.source.profile.keep_stop)


def _fixed(policy: OpenVLAOFTPolicy, *, seed: int) -> dict[str, Fixed]:
    """Return the values on which the network depends besides its trained tensors."""
    section, source = policy.section, policy.source
    settings: dict[str, Any] = {
        "policy.profile": source.profile.name,
        "policy.image_size": policy.observation_spec.image_size,
        "policy.proprio": source.proprio,
    }
    if section.lora is not None:
        settings["policy.lora.alpha"] = section.lora.alpha
    fixed = {name: Fixed(value, value) for name, value in settings.items()}
    if policy.is_trained_whole:
        return fixed
    if source.files is None:
        return {"policy.checkpoint": Fixed(source.origin, source.origin), "seed": Fixed(seed, seed), **fixed}
    return {"policy.checkpoint": Fixed(section.checkpoint, sampled_digest(source.files.weights)), **fixed}


def _in_words(policy: OpenVLAOFTPolicy, sizes: Sizes) -> str:
    """Return one line for people."""
    profile, observed = policy.source.profile, policy.observation_spec
    mebibytes = (sizes.trainable_bytes + sizes.frozen_bytes) / _MIB
    return (
        f"OpenVLA-OFT (profile {profile.name}): {observed.num_images} image(s) of {observed.image_size} pixels by "
        f"transform {profile.image_transform}, {_proprio_in_words(policy.source)}, "
        f"statistics {policy.statistics.key}, {sizes.trainable:,} trained and {sizes.frozen:,} frozen parameters in "
        f"{mebibytes:,.0f} MiB"
        + ("; actions from its L1 head, nothing is sampled" if policy.is_regression else "")
        + profile.sampling_in_words
    )


def _proprio_in_words(source: Source) -> str:
    if source.new_proprio:
        return "proprioception by a new projector"
    return "proprioception" if source.proprio else "no proprioception"


def _contradictions(section: OpenVLAOFTSection, source: Source, context: PolicyContext) -> Iterator[Problem]:
    """Yield the values about proprioception that a training would not follow."""
    if section.proprio is False and context.add_proprio:
        yield Problem(
            "policy.proprio",
            "demos.add_proprio adds what this turns off",
            found="false with demos.add_proprio=true",
            allowed="null or true with demos.add_proprio=true, or false without it",
            hint="add policy.proprio=true, or demos.add_proprio=false",
        )
    elif section.proprio is False and source.proprio:
        yield Problem(
            "policy.proprio",
            "a checkpoint that was trained with proprioception is always fed it",
            found=f"false, and {source.origin} has a proprio_projector file",
            allowed="null (as the checkpoint was trained) or true",
            hint="add policy.proprio=null",
        )
    elif section.proprio and not source.proprio:
        way = "demos.add_proprio=true" if context.measured is not None else "`vla-rl sft` with demos.add_proprio=true"
        yield Problem(
            "policy.proprio",
            "a checkpoint is fed proprioception only if it has a projector for it",
            found=f"true, and {source.origin} has no proprio_projector file",
            allowed="null (as the checkpoint was trained) or false",
            hint=f"add policy.proprio=null; or train a projector from demonstrations: {way}",
        )
    if source.new_proprio and not section.train_proprio_projector:
        yield Problem(
            "policy.train_proprio_projector",
            "a new projector has random weights, so it must be trained",
            found="false with demos.add_proprio=true",
            allowed="true",
            hint="add policy.train_proprio_projector=true",
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
