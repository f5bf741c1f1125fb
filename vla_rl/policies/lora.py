"""Low-rank adapters (https://arxiv.org/abs/2106.09685).

A targeted layer `q_proj` holds `q_proj.base_layer.weight` (the checkpoint's tensor), `q_proj.lora_A.default.weight` and
`q_proj.lora_B.default.weight`: peft's names. `checkpoint_name` undoes the renaming.

The arithmetic is peft's too, in fewer passes over memory. Per number of an adapted layer's input peft writes a float32
copy and rounds it to bfloat16 again; per number of its output it writes B A x, the scaled B A x, and the sum. Here the
input is read as it is, and `addmm` scales and adds while it multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_rl.policies.parameters import META, named_generator, set_parameter

ADAPTER = "default"
LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Adapters on the language model's linear layers: W x + alpha / rank · B A x."""

    rank: int = 32
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = LLAMA_LINEARS

    def __post_init__(self) -> None:
        wrong = [
            f"lora.{name} is {value}; allowed is {allowed}"
            for name, value, allowed, fits in (
                ("rank", self.rank, "1 or more", self.rank >= 1),
                ("alpha", self.alpha, "more than 0", self.alpha > 0),
                ("dropout", self.dropout, "at least 0 and below 1", 0 <= self.dropout < 1),
            )
            if not fits
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        unknown = sorted(set(self.targets) - set(LLAMA_LINEARS))
        if unknown or not self.targets:
            raise ValueError(
                f"lora.targets {list(self.targets)} must be some of {list(LLAMA_LINEARS)}; "
                "the action rows of lm_head are trained by train_action_rows instead"
            )


class LowRank(nn.Linear):
    """A of an adapter, computed in the dtype of its input, with autocast or without."""

    def __init__(self, in_dim: int, rank: int) -> None:
        super().__init__(in_dim, rank, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., rank)."""
        return F.linear(x, self.weight.to(x.dtype))


class ScaledSum(nn.Linear):
    """B of an adapter: result + scaling · B x, in one pass."""

    def __init__(self, rank: int, out_dim: int, *, scaling: float) -> None:
        super().__init__(rank, out_dim, bias=False, dtype=torch.float32)
        self.scaling = scaling

    def forward(self, low: Tensor, result: Tensor) -> Tensor:  # type: ignore[override]
        """(..., rank) and (..., out) to (..., out), in the dtype of `result`; without gradients in its memory."""
        rows, weight = result.flatten(0, -2), self.weight.t().to(result.dtype)
        # In place it would be one pass less in training too, but ZeRO-3 puts views between the layers there.
        add = torch.addmm if torch.is_grad_enabled() else torch.Tensor.addmm_
        return add(rows, low.flatten(0, -2), weight, alpha=self.scaling).view_as(result)


class AdaptedLinear(nn.Module):
    """W x + b + scaling · B A x.

    The parts are called as modules, because ZeRO-3 gathers their weights at the call. Float32 adapters on bfloat16
    weights compute in bfloat16, as the layer does.
    """

    def __init__(self, base_layer: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        rank, scaling = settings.rank, settings.alpha / settings.rank
        self.base_layer = base_layer
        self.dropout = nn.Dropout(settings.dropout)
        self.lora_A = nn.ModuleDict({ADAPTER: LowRank(base_layer.in_features, rank)})
        self.lora_B = nn.ModuleDict({ADAPTER: ScaledSum(rank, base_layer.out_features, scaling=scaling)})

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        low = self.lora_A[ADAPTER](self.dropout(x))
        return self.lora_B[ADAPTER](low, self.base_layer(x))  # type: ignore[no-any-return]


def add_adapters(module: nn.Module, settings: LoraSettings) -> None:
    """Put adapters into the targeted linear layers of `module`, in float32 and on the meta device."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if name in settings.targets and isinstance(child, nn.Linear):
                with META:
                    setattr(owner, name, AdaptedLinear(child, settings))


def fill_adapters(module: nn.Module, *, seed: int, device: torch.device) -> None:
    """Start the adapters: A Gaussian with deviation 1 / rank, B zero, so that they change nothing yet."""
    for name, parameter in list(module.named_parameters()):
        if ".lora_A." in name:
            drawn = torch.empty(parameter.shape).normal_(generator=named_generator(seed, name))
            set_parameter(module, name, (drawn / parameter.shape[0]).to(device))
        elif ".lora_B." in name:
            set_parameter(module, name, torch.zeros(parameter.shape, device=device))


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def checkpoint_name(name: str) -> str:
    """The name of an adapted layer's own parameter in the checkpoint."""
    return name.replace(".base_layer.", ".")


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, *, scaling: float) -> Tensor:
    """W + scaling · B A, added in float32, in the dtype of W."""
    return (weight.float() + scaling * (lora_b.float() @ lora_a.float())).to(weight.dtype)
