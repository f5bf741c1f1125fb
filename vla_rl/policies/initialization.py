"""Seeded initialisation of modules that were built on the meta device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MODULUS = 2**63


def seeded_generator(seed: int, *parts: int) -> torch.Generator:
    """A CPU generator of its own for (seed, parts): streams of different parts are independent."""
    mixed = seed
    for part in parts:
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) % MODULUS
    return torch.Generator().manual_seed(mixed)


def set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put `value` where the parameter of that dotted name stands, keeping its requires_grad flag."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    requires_grad = owner.get_parameter(leaf).requires_grad
    setattr(owner, leaf, nn.Parameter(value, requires_grad=requires_grad))


def initialize_linear_and_norms(module: nn.Module, generator: torch.Generator, *, device: torch.device) -> None:
    """Fill Linear and LayerNorm modules as torch does by default, but from `generator`, on `device`."""
    for name, child in module.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(child, nn.Linear):
            bound = 1.0 / math.sqrt(child.in_features)
            for leaf, parameter in child.named_parameters(recurse=False):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                set_parameter(module, prefix + leaf, drawn.to(device))
        elif isinstance(child, nn.LayerNorm):
            set_parameter(module, f"{prefix}weight", torch.ones(child.normalized_shape, device=device))
            set_parameter(module, f"{prefix}bias", torch.zeros(child.normalized_shape, device=device))
