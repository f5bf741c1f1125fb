"""Assignment of tensors that live elsewhere (shared memory, another process) to an empty policy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vla_rl.policies.parameters import set_parameter


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
