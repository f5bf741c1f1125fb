"""Critics on the hidden states at the action positions, in float32 regardless of the trunk's dtype.

The placeholders at these positions hold no action, so the result is a pure state value.
Letters: B decisions, A action positions, d width of the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_HIDDEN_DIM = 512  # first hidden width of the last-prompt-token head; the second is a quarter of it


class AttentionPoolHead(nn.Module):
    """Attention pooling over the action positions, then a small network (the critic of AcceRL, arXiv 2603.18464)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values (B,) of hiddens (B, A, d)."""
        weights = torch.softmax(self.score(hidden), dim=1)
        pooled = (weights * hidden).sum(dim=1)
        return self.fc2(torch.relu(self.fc1(self.norm(pooled)))).squeeze(-1)  # type: ignore[no-any-return]


class LastPromptTokenHead(nn.Module):
    """Three-layer network on the first readout, which sits at the last prompt token (the critic of RLinf)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, _HIDDEN_DIM),
            nn.GELU(),
            nn.Linear(_HIDDEN_DIM, _HIDDEN_DIM // 4),
            nn.GELU(),
            nn.Linear(_HIDDEN_DIM // 4, 1, bias=False),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values (B,) of hiddens (B, A, d)."""
        return self.net(hidden[:, 0]).squeeze(-1)  # type: ignore[no-any-return]


class NoCritic(nn.Module):
    """Place of a critic where none is trained: no parameters, and NaN for every value."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return NaN, (B,) float32, for hiddens (B, ...)."""
        return hidden.new_full((len(hidden),), math.nan, dtype=torch.float32)


VALUE_HEADS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"attention_pool": AttentionPoolHead, "last_prompt_token": LastPromptTokenHead, "none": lambda _: NoCritic()}
)


def value_head(name: str, *, width: int) -> nn.Module:
    """Return the critic of that name for a trunk of that width."""
    if name not in VALUE_HEADS:
        raise ValueError(f"value_head {name!r} is unknown; choose one of {sorted(VALUE_HEADS)}")
    return VALUE_HEADS[name](width)


def load_value_head(head: nn.Module, path: Path, *, kind: str) -> bool:
    """Load the weights of an exported critic.

    Args:
        head: critic whose parameters are overwritten.
        path: file that an export wrote.
        kind: kind of `head`.

    Returns:
        False if the file holds another kind of critic; `head` is then unchanged.

    Raises:
        ValueError: the file is broken, or was made for a trunk of another width.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if (file.metadata() or {}).get("value_head") != kind:
                return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        head.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not the critic of this policy ({error}); remove it to start with a new one"
        ) from error
    return True
