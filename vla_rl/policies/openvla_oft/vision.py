"""Both vision transformers, DINOv2 and SigLIP, up to the second-to-last block. Names are the checkpoint's.

Letters: B images, P patches, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_rl.policies.openvla_oft.config import PATCH_SIZE, OFTConfig, ViTConfig

NORM_EPS = 1e-6
CHANNELS_PER_IMAGE = 6  # three normalised for DINOv2, then three normalised for SigLIP


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, P, d) to (B, P, d)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Two layers with the exact (erf) GELU between."""

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned factor per feature; timm calls it gamma, checkpoints scale_factor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        return x * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.embed_dim
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, config.num_heads)
        self.ls1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, config.mlp_dim)
        self.ls2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, P, d) to (B, P, d)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Non-overlapping patches, one convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, P, d)."""
        return self.proj(images).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patch features: the raw output of the second-to-last block, without the final norm and the prefix tokens."""

    def __init__(self, config: ViTConfig, *, num_patches: int) -> None:
        super().__init__()
        width = config.embed_dim
        self.num_prefix_tokens = config.num_prefix_tokens
        if config.num_prefix_tokens:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_prefix_tokens - 1, width))
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth - 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, P, d)."""
        x = self.patch_embed(images) + self.pos_embed
        if self.num_prefix_tokens:
            batch = x.shape[0]
            x = torch.cat([self.cls_token.expand(batch, -1, -1), self.reg_token.expand(batch, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        patches: Tensor = x[:, self.num_prefix_tokens :]
        return patches


class VisionBackbone(nn.Module):
    """DINOv2 (`featurizer`) and SigLIP (`fused_featurizer`) side by side, image after image."""

    def __init__(self, config: OFTConfig) -> None:
        super().__init__()
        self.featurizer = VisionTransformer(config.dinov2, num_patches=config.num_patches)
        self.fused_featurizer = VisionTransformer(config.siglip, num_patches=config.num_patches)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (B, 6 N, H, W) normalised channels to (B, N P, d_dinov2 + d_siglip)."""
        batch, channels, height, width = pixel_values.shape
        if channels % CHANNELS_PER_IMAGE:
            raise ValueError(f"pixel_values has {channels} channels; expected {CHANNELS_PER_IMAGE} per image")
        images = pixel_values.reshape(-1, CHANNELS_PER_IMAGE, height, width)
        features = torch.cat([self.featurizer(images[:, :3]), self.fused_featurizer(images[:, 3:])], dim=-1)
        return features.reshape(batch, -1, features.shape[-1])
