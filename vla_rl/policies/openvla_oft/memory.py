"""Memory that the activations of one decision take, computed from shapes only.

Letters: d width, m width of the MLP, b bytes of an activation (2 in bfloat16, 4 in float32), T tokens of the sequence.
What autograd keeps of a Llama layer per token is counted; the rest of the network is small in comparison.

    two norms, which compute in float32                             2 · 4 d
    distinct inputs of the adapted linear layers                    b · (d + d + d + m) for all seven
    query, key, value and output of the attention                   b · 4 d
    gate, its SiLU, and up                                          b · 3 m

In bfloat16 and with adapters on all seven that is 22 d + 8 m bytes: 5.7 MB per token of the 7B model, 3.4 GB for the
599 tokens of two images, 1.9 GB for the 342 of one. Layers with the same input share it: query, key and value; gate and
up. With checkpointing a layer keeps only its input, b · d per token, and one layer at a time is as large as above.
Frozen vision keeps nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from vla_rl.policies.action_tokens import NUM_BINS
from vla_rl.policies.lora_section import LLAMA_LINEARS
from vla_rl.policies.openvla_oft.config import LlamaDims, OFTConfig, ViTConfig

_FLOAT32 = 4
_SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
_HEAD_COPIES = 4  # copies of logits and of the critic's input: themselves, their softmax, gradients


@dataclass(frozen=True, slots=True)
class ActivationMemory:
    """Activation memory in bytes per decision."""

    training: int  # in a micro-batch, at the peak of the backward pass
    inference: int  # in a batch, at the peak of a forward pass without gradients


def activation_memory(
    config: OFTConfig,
    *,
    num_tokens: int,
    num_images: int,
    bytes_per_value: int,
    adapted: Collection[str],
    train_backbone: bool,
    gradient_checkpointing: bool,
) -> ActivationMemory:
    """Estimate the activations of one decision.

    Args:
        config: dimensions of the network.
        num_tokens: tokens of the sequence, T.
        num_images: per observation.
        bytes_per_value: b.
        adapted: names of the linear layers that have adapters.
        train_backbone: every weight is trained: all inputs of linear layers are kept, those of the vision too.
        gradient_checkpointing: recompute the activations of the language model's layers.
    """
    dims = config.llama
    kept = LLAMA_LINEARS if train_backbone else adapted
    layer = num_tokens * llama_layer_bytes(dims, bytes_per_value=bytes_per_value, kept=kept)
    heads = _HEAD_COPIES * _FLOAT32 * config.num_action_tokens * (NUM_BINS + dims.hidden_size)
    vision = _vision_bytes(config, num_images=num_images, bytes_per_value=bytes_per_value)
    if gradient_checkpointing:
        trunk = dims.num_hidden_layers * num_tokens * bytes_per_value * dims.hidden_size + layer
    else:
        trunk = dims.num_hidden_layers * layer
    return ActivationMemory(
        training=trunk + layer + heads + (vision if train_backbone else 0),  # the second `layer`: gradients in flight
        inference=2 * layer + heads,
    )


def llama_layer_bytes(dims: LlamaDims, *, bytes_per_value: int, kept: Collection[str]) -> int:
    """Return the bytes that one layer keeps per token.

    Args:
        dims: dimensions of the language model.
        bytes_per_value: b.
        kept: linear layers whose input is kept.
    """
    d, m = dims.hidden_size, dims.intermediate_size
    inputs = {_SAME_INPUT.get(name, name) for name in kept}
    widths = sum(m if name == "down_proj" else d for name in inputs)
    return 2 * _FLOAT32 * d + bytes_per_value * (widths + 4 * d + 3 * m)


def _vision_bytes(config: OFTConfig, *, num_images: int, bytes_per_value: int) -> int:
    """Return the bytes that both vision transformers and the projector keep when trained, without checkpointing."""
    images = sum(_vit_bytes(vit, config.num_patches, bytes_per_value) for vit in (config.dinov2, config.siglip))
    projector = config.num_patches * bytes_per_value * (2 * 4 * config.vision_dim + 3 * config.llama.hidden_size)
    return num_images * (images + projector)


def _vit_bytes(vit: ViTConfig, num_patches: int, bytes_per_value: int) -> int:
    """Return the bytes of all blocks: float32 norm inputs, seven attention inputs or outputs, three of the MLP."""
    token = 2 * _FLOAT32 * vit.embed_dim + bytes_per_value * (7 * vit.embed_dim + 2 * vit.mlp_dim + vit.embed_dim)
    return (vit.depth - 1) * (num_patches + vit.num_prefix_tokens) * token
