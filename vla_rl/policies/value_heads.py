"""Critics on top of the hidden states at the action positions, in float32 whatever the trunk's dtype.

The placeholders at these positions hold no action, so what is read from them is a pure state value.
Letters: B decisions, A action positions, d width of the trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

_HIDDEN_DIM = 512  # width of the last-prompt-token head; a quarter of it follows


class AttentionPoolHead(nn.Module):
    """Attention pooling over the action positions, then a small network (the critic of AcceRL, arXiv 2603.18464)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (B,) of hiddens (B, A, d)."""
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
        """Values (B,) of hiddens (B, A, d)."""
        return self.net(hidden[:, 0]).squeeze(-1)  # type: ignore[no-any-return]


VALUE_HEADS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"attention_pool": AttentionPoolHead, "last_prompt_token": LastPromptTokenHead}
)


def value_head(name: str, *, width: int) -> nn.Module:
    """The critic of that name for a trunk of that width; ValueError names the known ones."""
    if name not in VALUE_HEADS:
        raise ValueError(f"value_head {name!r} is unknown; choose one of {sorted(VALUE_HEADS)}")
    return VALUE_HEADS[name](width)


def load_value_head(head: nn.Module, path: Path, *, kind: str) -> bool:
    """Take over an exported critic.

    Args:
        head: its parameters are overwritten.
        path: written by an export.
        kind: of `head`.

    Returns:
        False if the file holds another kind of critic; `head` is then as it was.

    Raises:
        ValueError: the file is broken, or made for a trunk of another width.
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
