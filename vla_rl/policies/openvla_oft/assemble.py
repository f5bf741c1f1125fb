"""Put a policy together: empty network, stored or random weights, then what is new (adapters, critic, action rows)."""

from __future__ import annotations

import torch

from vla_rl.policies.openvla_oft.checkpoint import DTYPES, empty_model
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy, TrainingChoices
from vla_rl.policies.openvla_oft.prompts import prompt_table
from vla_rl.policies.openvla_oft.source import Source
from vla_rl.policies.parameters import cast_parameters, move_buffers


def assemble(
    source: Source,
    *,
    tasks: tuple[str, ...],
    statistics_key: str,
    num_images: int,
    training: TrainingChoices,
    dtype: str,
    gradient_checkpointing: bool,
    seed: int,
    device: torch.device,
    empty: bool,
) -> OpenVLAOFTPolicy:
    """See `vla_rl.policies.build.build_openvla_oft`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {sorted(DTYPES)}")
    statistics = source.dataset_statistics(statistics_key)
    prompts = prompt_table(source.tokenizer(), tasks)
    if training.train_backbone and training.lora is not None:
        raise ValueError(
            "train_backbone trains the weights themselves; adapters on them would be trained twice: lora=null"
        )
    model = empty_model(source.config, source.profile, proprio=source.proprio, l1_head=False, dtype=DTYPES[dtype])
    if model.proprio_projector is not None and training.train_proprio_projector:
        cast_parameters(model.proprio_projector, torch.float32)
    if not empty:
        source.fill(model, seed=seed, device=device)
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
