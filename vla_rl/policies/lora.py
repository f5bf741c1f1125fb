"""Low-rank adapters (https://arxiv.org/abs/2106.09685).

A targeted layer `q_proj` holds `q_proj.base_layer.weight` (the checkpoint's tensor), `q_proj.lora_A.default.weight` and
`q_proj.lora_B.default.weight`: peft's names. `checkpoint_name` undoes the renaming.

The arithmetic is peft's too, in fewer passes over memory. Per number of an adapted layer's input peft writes a float32
copy and rounds it to bfloat16 again; per number of its output it writes B A x, the scaled B A x, and the sum. Here the
input is read without conversion, and `addmm_` scales and adds while it multiplies, in the memory of W x. Layers that
read the same input (query, key and value; gate and up) multiply it by all their A at once: see `SharedInput`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.parameters import META, named_generator, set_parameter

ADAPTER = "default"
SAME_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # in the order in which Llama calls them


class LowRank(nn.Linear):
    """A of an adapter, computed in the dtype of its input, with autocast or without."""

    def __init__(self, in_dim: int, rank: int) -> None:
        super().__init__(in_dim, rank, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., rank)."""
        return F.linear(x, self.weight.to(x.dtype))


class ScaledSum(nn.Linear):
    """B of an adapter: result + scaling · B x, in one pass."""

    def __init__(self, rank: int, out_dim: int, *, scaling: float) -> None:
        super().__init__(rank, out_dim, bias=False, dtype=torch.float32)
        self.scaling = scaling

    def forward(self, low: Tensor, result: Tensor) -> Tensor:  # type: ignore[override]
        """Map (R, rank) and (R, out) to (R, out), in the dtype of `result` and, if autograd allows, its memory."""
        weight = self.weight.t().to(result.dtype)
        # Out of place, `addmm` first copies `result`: two more passes over the largest tensors of a layer. No gradient
        # needs W x itself, so it may be overwritten, but not through the views that ZeRO-3 inserts between the layers.
        add = torch.Tensor.addmm_ if _may_be_overwritten(result) else torch.addmm
        return add(result, low, weight, alpha=self.scaling)


class SharedInput:
    """Adapted layers that read the same tensor: the first that is called multiplies it by the A of all.

    The weights stay separate parameters, with peft's names, and are concatenated at each pass, so values that are
    copied into them (`ipc.mailbox`) take effect at once. Each product is returned once, and the input is released with
    the last one: nothing outlives a pass, unless it fails in between. Then `forget` releases what is left.
    """

    def __init__(self, layers: Sequence[AdaptedLinear]) -> None:
        self._layers = tuple(layers)
        self._input: Tensor | None = None
        self._with_gradient = False
        self._low: list[Tensor | None] = []
        for index, layer in enumerate(layers):
            layer.shared = (self, index)

    def low(self, index: int, x: Tensor) -> Tensor:
        """Return A x (R, rank) of the layer with this index, from x (..., in) of R rows."""
        ready = self._input is x and self._with_gradient == torch.is_grad_enabled()
        low = self._low[index] if ready else None
        if low is None:
            weights = [layer.first_weight for layer in self._layers]
            products = F.linear(x.flatten(0, -2), torch.cat(weights).to(x.dtype))
            self._low = list(products.split([len(weight) for weight in weights], dim=-1))
            self._input, self._with_gradient = x, torch.is_grad_enabled()
            low = self._low[index]
            assert low is not None
        self._low[index] = None
        if all(product is None for product in self._low):
            self.forget()
        return low

    def forget(self) -> None:
        """Release the input and the products, which hold all that earlier layers saved for the backward pass."""
        self._input, self._low = None, []


class AdaptedLinear(nn.Module):
    """Adapted linear layer: W x + b + scaling · B A x.

    The parts are called as modules, because ZeRO-3 gathers their weights at the call. Float32 adapters on bfloat16
    weights compute in bfloat16, as the layer does.
    """

    def __init__(self, base_layer: nn.Linear, settings: LoraSection) -> None:
        super().__init__()
        rank, scaling = settings.rank, settings.alpha / settings.rank
        self.base_layer = base_layer
        self.dropout = nn.Dropout(settings.dropout)
        self.lora_A = nn.ModuleDict({ADAPTER: LowRank(base_layer.in_features, rank)})
        self.lora_B = nn.ModuleDict({ADAPTER: ScaledSum(rank, base_layer.out_features, scaling=scaling)})
        self.shared: tuple[SharedInput, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.flatten(0, -2)
        result = self.lora_B[ADAPTER](self._low(x, rows), self.base_layer(rows))
        return result.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]

    @property
    def first_weight(self) -> Tensor:
        """Return A, (rank, in)."""
        return self.lora_A[ADAPTER].weight  # type: ignore[return-value]

    def forget_pass(self) -> None:
        """Release what a pass that failed has left, see `devices.free_failed_pass`."""
        if self.shared is not None:
            self.shared[0].forget()

    def _low(self, x: Tensor, rows: Tensor) -> Tensor:
        if self.shared is None or is_partitioned(self.first_weight):
            return self.lora_A[ADAPTER](self.dropout(rows))  # type: ignore[no-any-return]
        group, index = self.shared
        return group.low(index, x)


def add_adapters(module: nn.Module, settings: LoraSection) -> None:
    """Put adapters into the targeted linear layers of `module`, in float32 and on the meta device."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if name in settings.targets and isinstance(child, nn.Linear):
                with META:
                    setattr(owner, name, AdaptedLinear(child, settings))
        if settings.dropout == 0:  # each layer has its own dropout, as in peft, and so its own input
            for names in SAME_INPUT:
                layers = [layer for name in names if isinstance(layer := getattr(owner, name, None), AdaptedLinear)]
                if len(layers) > 1:
                    SharedInput(layers)


def is_partitioned(parameter: Tensor) -> bool:
    """Return whether ZeRO-3 shards a parameter, which is then whole only while its module is called."""
    return hasattr(parameter, "ds_id")


def _may_be_overwritten(tensor: Tensor) -> bool:
    """Return whether autograd allows it. Compiled graphs have no views to ask about, and manage memory themselves."""
    return not torch.compiler.is_compiling() and not (torch.is_grad_enabled() and tensor._is_view())


def fill_adapters(module: nn.Module, *, seed: int, device: torch.device) -> None:
    """Initialise the adapters: A Gaussian with standard deviation 1 / rank, B zero, so that they have no effect yet."""
    for name, parameter in list(module.named_parameters()):
        if ".lora_A." in name:
            drawn = torch.empty(parameter.shape).normal_(generator=named_generator(seed, name))
            set_parameter(module, name, (drawn / parameter.shape[0]).to(device))
        elif ".lora_B." in name:
            set_parameter(module, name, torch.zeros(parameter.shape, device=device))


def is_adapter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def checkpoint_name(name: str) -> str:
    """Return the name of an adapted layer's own parameter in the checkpoint."""
    return name.replace(".base_layer.", ".")


def merged_weight(weight: Tensor, lora_a: Tensor, lora_b: Tensor, *, scaling: float) -> Tensor:
    """Return W + scaling · B A, added in float32, in the dtype of W."""
    return (weight.float() + scaling * (lora_b.float() @ lora_a.float())).to(weight.dtype)
