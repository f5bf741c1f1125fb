"""Small networks around the language model. Names are the checkpoint's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_RESIDUAL_BLOCKS = 2


class Projector(nn.Module):
    """Vision features to the width of the language model."""

    def __init__(self, vision_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, 4 * vision_dim)
        self.fc2 = nn.Linear(4 * vision_dim, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., d_vision) to (..., d)."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))  # type: ignore[no-any-return]


class ProprioProjector(nn.Module):
    """Normalised proprioception to one token."""

    def __init__(self, proprio_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(proprio_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, proprio: Tensor) -> Tensor:
        """Map (B, S) to (B, d), in the dtype of the weights."""
        return self.fc2(F.gelu(self.fc1(proprio.to(self.fc1.weight.dtype))))  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return x + self.ffn(x)  # type: ignore[no-any-return]


class ResidualMLP(nn.Module):
    """Residual MLP whose LayerNorm eps is 1e-5, unlike in the vision transformers."""

    def __init__(self, in_dim: int, width: int, out_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(in_dim, eps=1e-5)
        self.fc1 = nn.Linear(in_dim, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(NUM_RESIDUAL_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-5)
        self.fc2 = nn.Linear(width, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        x = torch.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))  # type: ignore[no-any-return]


class L1ActionHead(nn.Module):
    """Regression head from the concatenated hiddens of one control step to that step's normalised action."""

    def __init__(self, *, width: int, chunk_size: int, action_dim: int) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.model = ResidualMLP(action_dim * width, width, action_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (B, K D, d) to (B, K, D)."""
        return self.model(hidden.reshape(hidden.shape[0], self.chunk_size, -1))  # type: ignore[no-any-return]
