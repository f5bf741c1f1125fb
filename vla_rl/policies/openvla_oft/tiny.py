"""Scaled-down model of the real architecture with random weights, for trials on a CPU and for tests.

Everything but the sizes is as in a public checkpoint: names, sequence layout, token ids, the 32064-row vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vla_rl.policies.openvla_oft.config import PATCH_SIZE, LlamaDims, OFTConfig, ViTConfig
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.parameters import move_buffers, named_generator, set_parameter

IMAGE_SIZE = 112
_ATTENTION_GAIN = 2.0  # distinguishes positions and tasks; much more would amplify rounding errors


def tiny_config(*, image_size: int = IMAGE_SIZE) -> OFTConfig:
    """Return a network of about 4.4 million parameters, 4.1 million of them in the two vocabulary matrices."""
    if image_size < PATCH_SIZE or image_size % PATCH_SIZE:
        raise ValueError(f"image_size must be a multiple of {PATCH_SIZE}, found {image_size}")
    return OFTConfig(
        image_size=image_size,
        dinov2=ViTConfig(32, 3, 4, 128, num_prefix_tokens=5, layer_scale=True, attention_pool=False),
        siglip=ViTConfig(48, 3, 4, 179, num_prefix_tokens=0, layer_scale=False, attention_pool=True),
        llama=LlamaDims(
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
        dtype="float32",
    )


def fill_randomly(model: OFTNetwork, *, seed: int, device: torch.device) -> None:
    """Give every parameter of `model` a value that depends only on `seed` and its name.

    Args:
        model: network of a few layers; see `random_weights` for deep ones.
        seed: seed of the weights.
        device: device of the parameters; they are drawn on the CPU, so that they are the same on every device.
    """
    for name, parameter in list(model.named_parameters()):
        value = _draw(name, parameter, named_generator(seed, name))
        set_parameter(model, name, value.to(device=device, dtype=parameter.dtype))
    move_buffers(model, device)


def _draw(name: str, parameter: nn.Parameter, generator: torch.Generator) -> Tensor:
    """Draw a parameter: linear weights preserve the scale of their input; norms are near 1; attention is sharpened."""
    noise = torch.empty(parameter.shape, device=generator.device).normal_(generator=generator)
    if parameter.dim() == 1:
        is_scale = name.endswith((".weight", "scale_factor"))
        return 1.0 + 0.1 * noise if is_scale else 0.1 * noise
    if name.endswith(("embed_tokens.weight", "pos_embed", "cls_token", "reg_token")):
        return noise
    gain = _ATTENTION_GAIN if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return noise * (gain / math.sqrt(parameter[0].numel()))
