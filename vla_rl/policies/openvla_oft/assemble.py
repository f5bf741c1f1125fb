"""Assembly of a policy: empty network, stored or random weights, then new parts (adapters, critic, action rows)."""

from __future__ import annotations

import torch

from vla_rl.policies.openvla_oft.checkpoint_reader import DTYPES
from vla_rl.policies.openvla_oft.dataset_statistics import DatasetStatistics
from vla_rl.policies.openvla_oft.model import OpenVLAOFT
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy, TrainingChoices
from vla_rl.policies.openvla_oft.prompts import prompt_table
from vla_rl.policies.openvla_oft.source import Source
from vla_rl.policies.parameters import cast_parameters, move_buffers


def assemble(  # noqa: PLR0913 - the arguments of the builder, resolved
    source: Source,
    *,
    tasks: tuple[str, ...],
    statistics: DatasetStatistics,
    num_images: int,
    training: TrainingChoices,
    dtype: str,
    gradient_checkpointing: bool,
    seed: int,
    device: torch.device,
    empty: bool,
    draw_on: torch.device | None = None,
) -> OpenVLAOFTPolicy:
    """Assemble a policy; see `vla_rl.policies.build.build_openvla_oft`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {sorted(DTYPES)}")
    _check_cameras(source, num_images)
    prompts = prompt_table(source.tokenizer(), tasks)
    if training.train_backbone and training.lora is not None:
        raise ValueError(
            "policy.train_backbone trains the weights themselves; adapters on them would be trained twice: "
            "policy.lora=null"
        )
    model = source.empty_network(dtype=DTYPES[dtype])
    _widen_what_is_trained(model, training)
    if empty:
        source.check(model)
    else:
        source.fill(model, seed=seed, device=device, draw_on=draw_on)
    policy = OpenVLAOFTPolicy(
        model,
        source=source,
        num_images=num_images,
        prompts=prompts,
        statistics=statistics,
        training=training,
        gradient_checkpointing=gradient_checkpointing,
    )
    if not empty:
        policy.fill_trainable(seed=seed, device=device)
    move_buffers(policy, device)
    return policy


def _check_cameras(source: Source, num_images: int) -> None:
    if source.files is not None and num_images != source.profile.num_images:
        raise ValueError(
            f"{source.origin}: checkpoints of profile {source.profile.name!r} look at {source.profile.num_images} "
            f"image(s), found {num_images} camera(s)"
        )


def _widen_what_is_trained(model: OpenVLAOFT, training: TrainingChoices) -> None:
    """Convert the network's own trained weights to float32: an update of 1e-5 is lost in bfloat16."""
    if training.train_backbone:
        for part in (model.vision_backbone, model.projector, model.language_model.model):
            cast_parameters(part, torch.float32)
    if model.proprio_projector is not None and training.train_proprio_projector:
        cast_parameters(model.proprio_projector, torch.float32)
