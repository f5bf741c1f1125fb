"""Comparison of adapted layers one by one: outputs on noise with the adapter beside the layer, and after export.

The outputs of whole networks (`verification`) cannot distinguish a small adapter from rounding: in bfloat16 rounding
changes logits by 0.03 to 0.05 of their standard deviation. A single layer's output changes by less than 0.004 of its
size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vla_rl.errors import RunFailureError
from vla_rl.policies.parameters import named_generator

_ROWS = 16  # rows of noise, for linear layers
_PATCHES = 4  # pixels per side, for convolutions

# Allowed root-mean-square difference between the outputs of a merged layer and of the layer with its adapter beside it:
# a share of what the adapter adds, plus a share of the whole output, for rounding of weights and outputs. Measured on
# the tiny model, with adapters that add 0.06 % to 100 % of the output: 7e-7 of it in float32, 0.0037 in bfloat16.
_OF_EFFECT = 0.05
_OF_ANSWER = {torch.float32: 1e-3, torch.bfloat16: 0.008}


@dataclass(frozen=True, slots=True)
class AdaptedAnswer:
    """Output of a layer on noise, float32 on the CPU."""

    whole: Tensor  # with its adapter
    adapter: Tensor  # the adapter's contribution


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """Difference between written and adapted layers, as root-mean-square shares of a layer's output."""

    layers: int
    difference: float  # largest
    effect: float  # largest contribution of an adapter

    def __str__(self) -> str:
        return (
            f"{self.layers} adapted layers, each alone, differ by at most {self.difference:.2g} of their answers, to "
            f"which adapters add up to {self.effect:.2g}"
        )


@torch.inference_mode()
def adapted_answers(model: nn.Module) -> dict[str, AdaptedAnswer]:
    """Return the outputs on noise, by name, of all layers with an unmerged adapter, ours or peft's."""
    answers = {}
    for name, layer in model.named_modules():
        base = getattr(layer, "base_layer", None)
        if isinstance(base, nn.Linear | nn.Conv2d):
            whole = layer(_noise(name, base)).float().cpu()
            answers[name] = AdaptedAnswer(whole, whole - base(_noise(name, base)).float().cpu())
    return answers


@torch.inference_mode()
def plain_answers(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the outputs of merged layers on the same noise."""
    layers = {name: model.get_submodule(name) for name in names}
    return {name: layer(_noise(name, layer)).float().cpu() for name, layer in layers.items()}


def compare_layers(
    before: Mapping[str, AdaptedAnswer], after: Mapping[str, Tensor], *, dtype: torch.dtype
) -> LayerComparison | None:
    """Compare layers with their adapters beside them with the written layers.

    Args:
        before: outputs of the unmerged network.
        after: outputs of the same layers of the export.
        dtype: the coarser one of the exported and the written weights.

    Returns:
        The comparison; None if no layer has an adapter.

    Raises:
        RunFailureError: a written layer's output differs by more than rounding explains.
    """
    differences, effects = [0.0], [0.0]
    for name, answer in before.items():
        size, effect = _root_mean_square(answer.whole), _root_mean_square(answer.adapter)
        difference = _root_mean_square(after[name] - answer.whole)
        allowed = _OF_EFFECT * effect + _OF_ANSWER[dtype] * size
        if not difference <= allowed:  # negated, so that NaN fails too
            raise RunFailureError(
                f"the export differs from what was exported, so it was removed: the output of {name} alone differs by "
                f"{difference:.2g} in root mean square (allowed is {allowed:.2g}) where its adapter adds {effect:.2g} "
                f"to {size:.2g}. Export once more; if it fails again, the program is at fault"
            )
        differences.append(difference / max(size, torch.finfo(torch.float32).tiny))
        effects.append(effect / max(size, torch.finfo(torch.float32).tiny))
    return LayerComparison(len(before), max(differences), max(effects)) if before else None


def _noise(name: str, layer: nn.Module) -> Tensor:
    """Return standard normal noise that depends on the name alone, in the shape and dtype the layer takes."""
    assert isinstance(layer, nn.Linear | nn.Conv2d), f"{name} is {type(layer).__name__}"
    if isinstance(layer, nn.Linear):
        shape = [_ROWS, layer.in_features]
    else:
        shape = [1, layer.in_channels, *(_PATCHES * side for side in layer.kernel_size)]
    return torch.randn(shape, generator=named_generator(0, name)).to(layer.weight)


def _root_mean_square(numbers: Tensor) -> float:
    return float(numbers.double().square().mean().sqrt())
