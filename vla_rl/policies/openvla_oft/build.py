"""Builder of the policy: empty network, stored or random weights, then new parts (adapters, critic, action rows)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vla_rl.policies.openvla_oft.checkpoint_reader import DTYPES
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.prompts import prompt_table
from vla_rl.policies.openvla_oft.source import Source, find_source, trained_anew
from vla_rl.policies.parameters import cast_parameters, move_buffers

if TYPE_CHECKING:
    from vla_rl.policies.kind import PolicyContext
    from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection


def build_openvla_oft(
    section: OpenVLAOFTSection, context: PolicyContext, *, device: str, empty: bool = False
) -> OpenVLAOFTPolicy:
    """Build OpenVLA-OFT with a critic.

    Args:
        section: the policy's section of a recipe. A hub id is looked up in the local cache.
        context: the rest of the setup. If the policy only acts, its checkpoint may have an L1 head instead of tokens.
            The same seed gives different weights of `random-7b` on a CPU and on each GPU model.
        device: device of parameters and tables.
        empty: leave all parameters on the meta device; tables are real regardless.

    Raises:
        ValueError: the checkpoint, profile, statistics or an option does not fit.
    """
    source = find_source(
        section.checkpoint,
        profile=section.profile,
        image_size=section.image_size,
        proprio=section.proprio,
        accept_l1_head=context.only_acts,
        on_demonstrations=context.measured is not None,
    )
    if context.measured is not None:
        source = trained_anew(source, context.measured, num_images=context.num_images, add_proprio=context.add_proprio)
    statistics = source.dataset_statistics(context.suite, section.statistics)
    _check_cameras(source, context.num_images)
    prompts = prompt_table(source.tokenizer(), context.tasks)
    model = source.empty_network(OFTNetwork, dtype=DTYPES[section.dtype])
    _widen_what_is_trained(model, section)
    place, draw_on = torch.device(device), None if context.draw_on is None else torch.device(context.draw_on)
    if empty:
        source.check(model)
    else:
        source.fill(model, seed=context.seed, device=place, draw_on=draw_on)
    policy = OpenVLAOFTPolicy(
        model,
        section,
        source=source,
        num_images=context.num_images,
        prompts=prompts,
        statistics=statistics,
    )
    policy.temperature = context.temperature
    if not empty:
        policy.fill_trainable(seed=context.seed, device=place)
    move_buffers(policy, place)
    return policy


def _check_cameras(source: Source, num_images: int) -> None:
    if source.files is not None and num_images != source.profile.num_images:
        raise ValueError(
            f"{source.origin}: checkpoints of profile {source.profile.name!r} look at {source.profile.num_images} "
            f"image(s), found {num_images} camera(s)"
        )


def _widen_what_is_trained(model: OFTNetwork, section: OpenVLAOFTSection) -> None:
    """Convert the network's own trained weights to float32: an update of 1e-5 is lost in bfloat16."""
    if section.train_backbone:
        for part in (model.vision_backbone, model.projector, model.language_model.model):
            cast_parameters(part, torch.float32)
    if model.proprio_projector is not None and section.train_proprio_projector:
        cast_parameters(model.proprio_projector, torch.float32)
