"""Builders of policies: module-level functions, turned into a `PolicyBuilder` with `functools.partial`.

Importing this module imports neither transformers nor peft; calling a builder does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vla_rl.policies.lora import LoraSettings
from vla_rl.policies.parameters import fill_linear_and_norms
from vla_rl.types import ActionSpec

if TYPE_CHECKING:
    from vla_rl.policies.mlp import MLPPolicy
    from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy


def build_openvla_oft(  # noqa: PLR0913 - the flat arguments of a partial
    *,
    checkpoint: str,
    profile: str,
    tasks: tuple[str, ...],
    statistics_key: str,
    num_images: int,
    image_size: int | None,
    proprio: bool,
    lora: LoraSettings | None,
    train_action_rows: bool,
    train_proprio_projector: bool,
    value_head: str,
    detach_value: bool,
    dtype: str,
    gradient_checkpointing: bool,
    seed: int,
    device: str,
    empty: bool = False,
    train_backbone: bool = False,
    train_embeddings: bool = True,
    accept_l1_head: bool = False,
    draw_on: str | None = None,
    statistics: str | None = None,
    temperature: float = 1.0,
) -> OpenVLAOFTPolicy:
    """Build OpenVLA-OFT with a critic.

    Args:
        checkpoint: `tiny` or `random-7b` (random weights from `seed`), a local checkpoint directory, the folder of an
            adapter, or a hub id that is in the local cache.
        profile: `auto`, or the checkpoint family's name.
        tasks: task texts in the order that `PolicyInputs.task_index` counts.
        statistics_key: suite whose own statistics scale actions and proprioception, unless `statistics` says otherwise.
        num_images: cameras per observation.
        image_size: pixels per side; None for what the checkpoint was trained on.
        proprio: feed proprioception; used for random weights only, because a checkpoint determines it.
        lora: adapters on the language model; None leaves its layers unchanged.
        train_action_rows: train the 256 action rows of lm_head.
        train_proprio_projector: train the proprioception projector, if there is one.
        value_head: a name of `value_heads.VALUE_HEADS`.
        detach_value: keep the critic's gradient out of the trunk.
        dtype: dtype of the frozen weights, `float32` or `bfloat16`; trained parameters are float32.
        gradient_checkpointing: recompute the language model's layers in the backward pass (in training mode).
        seed: seed of the adapters, the critic and random weights.
        device: device of parameters and tables.
        empty: leave all parameters on the meta device; tables are real regardless.
        train_backbone: train every weight of the network itself; `lora` must then be None.
        train_embeddings: with `train_backbone`, train the embeddings of words too.
        accept_l1_head: the policy only acts, so the checkpoint may have an L1 head instead of tokens.
        draw_on: device that draws the weights of `random-7b`; default: `device`. The same seed gives different numbers
            on a CPU and on each GPU model.
        statistics: key of the data set whose statistics are used instead; None for the suite's own, for those an export
            recorded, or for the only ones.
        temperature: divides the logits, in acting and evaluating alike.

    Raises:
        ValueError: the checkpoint, profile, statistics or an option does not fit.
    """
    from vla_rl.policies.openvla_oft.assemble import assemble
    from vla_rl.policies.openvla_oft.policy import TrainingChoices
    from vla_rl.policies.openvla_oft.source import find_source

    source = find_source(
        checkpoint, profile=profile, image_size=image_size, proprio=proprio, accept_l1_head=accept_l1_head
    )
    policy = assemble(
        source,
        tasks=tasks,
        statistics=source.dataset_statistics(statistics_key, statistics),
        num_images=num_images,
        training=TrainingChoices(
            lora=lora,
            train_action_rows=train_action_rows,
            train_proprio_projector=train_proprio_projector,
            train_backbone=train_backbone,
            train_embeddings=train_embeddings,
            value_head=value_head,
            detach_value=detach_value,
        ),
        dtype=dtype,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        device=torch.device(device),
        empty=empty,
        draw_on=None if draw_on is None else torch.device(draw_on),
    )
    policy.temperature = temperature
    return policy


def build_mlp(
    *,
    state_dim: int,
    chunk_size: int,
    action_dim: int,
    num_bins: int | None,
    hidden_dim: int,
    seed: int,
    device: str,
    empty: bool = False,
    temperature: float = 1.0,
) -> MLPPolicy:
    """Build a multi-layer perceptron over state observations, initialised from `seed`; see `mlp.MLPPolicy`.

    `num_bins` is None for Gaussian actions.
    """
    from vla_rl.policies.mlp import meta_mlp

    policy = meta_mlp(
        state_dim=state_dim,
        action_spec=ActionSpec(chunk_size=chunk_size, action_dim=action_dim, num_bins=num_bins),
        hidden_dim=hidden_dim,
    )
    policy.temperature = temperature
    if not empty:
        fill_linear_and_norms(policy, seed=seed, device=torch.device(device))
    return policy
