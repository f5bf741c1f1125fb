"""Random weights for a network of the real size, conditioned so that rounding has the effect it has after training.

Every matrix preserves the scale of its input, and the two that end a residual branch are divided by the root
of the number of branches, so that a stream of any depth is of order 1 and every branch adds a little. Attention is
spread out, logits have a standard deviation of about 1 (an entropy of about 5.0 of at most 5.5 nat). Two bfloat16
passes over the same weights then differ as little as those of a well-behaved network (measured on a small one in
`tests/policies/test_random_weights.py`), and differences at lag 0 are the noise of the arithmetic, not amplified by the
network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from vla_rl.container import usable_cores
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.parameters import move_buffers, named_generator, set_parameter

_MAX_THREADS = 16  # each holds a float32 copy of one matrix, half a gigabyte at most
_ENDS_A_BRANCH = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "mlp.fc2.weight")


def fill_well_conditioned(
    model: OFTNetwork, *, seed: int, device: torch.device, draw_on: torch.device | None = None
) -> None:
    """Give every parameter of `model` a value that depends only on `seed`, its name and the model of `draw_on`.

    Args:
        model: network of any size; its parameters may be on the meta device.
        seed: seed of the weights.
        device: device of the parameters.
        draw_on: device that draws them; default: `device`. On a CPU every core draws a parameter at a time. The same
            seed gives different numbers on a CPU and on each GPU model.
    """
    gains = dict(_gains(model))

    def value(name: str, parameter: nn.Parameter) -> Tensor:
        generator = named_generator(seed, name, device=draw_on or device)
        return _draw(name, parameter, gains[name], generator).to(device=device, dtype=parameter.dtype)

    named = list(model.named_parameters())
    on_cpu = (draw_on or device).type == "cpu"
    # torch's generator works on one core and lets other threads run meanwhile.
    threads = min(_MAX_THREADS, usable_cores()) if on_cpu else 1
    with ThreadPoolExecutor(threads) as pool:
        for (name, _), drawn in zip(named, pool.map(lambda each: value(*each), named), strict=True):
            set_parameter(model, name, drawn)
    move_buffers(model, device)


def _gains(model: OFTNetwork) -> Iterator[tuple[str, float | None]]:
    """Yield per parameter the standard deviation times the root of its inputs; None for vectors and tables."""
    vision, language = model.vision_backbone, model.language_model.model
    depths = {
        "vision_backbone.featurizer.": len(vision.featurizer.blocks),
        "vision_backbone.fused_featurizer.": len(vision.fused_featurizer.blocks),
        "language_model.model.layers.": len(language.layers),
    }
    for name, parameter in model.named_parameters():
        depth = next((depth for prefix, depth in depths.items() if name.startswith(prefix)), None)
        if parameter.dim() == 1 or name.endswith(("embed_tokens.weight", "pos_embed", "cls_token", "reg_token")):
            yield name, None
        elif depth is not None and name.endswith(_ENDS_A_BRANCH):
            yield name, 1.0 / math.sqrt(2 * depth)
        else:
            yield name, 1.0


def _draw(name: str, parameter: nn.Parameter, gain: float | None, generator: torch.Generator) -> Tensor:
    """Draw a matrix with its gain.

    Scales of norms and layers are 1 and shifts 0; tables have a standard deviation of 1.
    """
    if parameter.dim() == 1:
        is_scale = name.endswith((".weight", "scale_factor"))
        return torch.full(parameter.shape, 1.0 if is_scale else 0.0, device=generator.device)
    noise = torch.empty(parameter.shape, device=generator.device).normal_(generator=generator)
    return noise if gain is None else noise.mul_(gain / math.sqrt(parameter[0].numel()))
