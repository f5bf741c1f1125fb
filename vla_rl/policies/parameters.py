"""Parameters of modules that are built on the meta device: replace, assign, cast, fill from a seed."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

META = torch.device("meta")
_SEED_MODULUS = 2**63


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers and bytes of a module's parameters."""

    trainable: int
    frozen: int
    trainable_bytes: int
    frozen_bytes: int


def sizes_of(module: nn.Module) -> Sizes:
    """Count the parameters of a module, which may be on the meta device."""

    def total(*, trainable: bool) -> tuple[int, int]:
        chosen = [parameter for parameter in module.parameters() if parameter.requires_grad is trainable]
        count = sum(parameter.numel() for parameter in chosen)
        return count, sum(parameter.numel() * parameter.element_size() for parameter in chosen)

    (trainable, trainable_bytes), (frozen, frozen_bytes) = total(trainable=True), total(trainable=False)
    return Sizes(trainable, frozen, trainable_bytes, frozen_bytes)


def named_generator(seed: int, name: str, *, device: torch.device | None = None) -> torch.Generator:
    """Return a generator for one parameter, so that its values do not depend on which other parameters exist."""
    return torch.Generator(device or "cpu").manual_seed(
        (seed * 0x1_0000_0001 + zlib.crc32(name.encode())) % _SEED_MODULUS
    )


def set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace the parameter of that dotted name by `value`, keeping its requires_grad flag."""
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    requires_grad = owner.get_parameter(leaf).requires_grad
    setattr(owner, leaf, nn.Parameter(value, requires_grad=requires_grad))


def assign_parameters(policy: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace every parameter of `policy` by the tensor of its name, without a copy, keeping requires_grad.

    Args:
        policy: usually one built with `empty=True`, whose parameters are on the meta device.
        tensors: exactly the names of `policy.named_parameters()`, each in the parameter's shape.

    Raises:
        ValueError: names are missing or unknown, or a shape differs; the policy is then unchanged.
    """
    parameters = dict(policy.named_parameters())
    problems = [f"missing: {name}" for name in parameters if name not in tensors]
    problems += [f"unknown: {name}" for name in tensors if name not in parameters]
    problems += [
        f"{name}: shape {tuple(tensors[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if problems:
        shown = "; ".join(problems[:8])
        raise ValueError(f"these tensors do not fit the policy ({len(problems)} problems): {shown}")
    for name in parameters:
        set_parameter(policy, name, tensors[name])


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast parameters but not buffers: `Module.to` would also round the rotary table."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Move buffers but not parameters, which may be on the meta device."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device))


def fill_linear_and_norms(module: nn.Module, *, seed: int, device: torch.device, prefix: str = "") -> None:
    """Give Linear and LayerNorm modules torch's default initialisation, drawn from `seed` and the parameter's name.

    Args:
        module: parameters may have any storage; they are replaced by float32 tensors on `device`.
        seed: the run's seed.
        device: device of the parameters.
        prefix: prepended to the names that seed the generators, so that modules of equal shape differ.
    """
    for path, child in module.named_modules():
        for leaf, parameter in child.named_parameters(recurse=False):
            name = f"{path}.{leaf}" if path else leaf
            if isinstance(child, nn.Linear):
                bound = 1.0 / math.sqrt(child.in_features)
                value = torch.empty(parameter.shape).uniform_(
                    -bound, bound, generator=named_generator(seed, prefix + name)
                )
            elif isinstance(child, nn.LayerNorm):
                value = torch.full(parameter.shape, 1.0 if leaf == "weight" else 0.0)
            else:
                raise TypeError(f"no initialisation rule for {name} of a {type(child).__name__}")
            set_parameter(module, name, value.to(device))
