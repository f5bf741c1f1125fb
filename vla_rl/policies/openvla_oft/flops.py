"""FLOPs of one decision, computed from shapes only; a multiply-add is two.

Letters: T tokens of the sequence, d width, m MLP of Llama; P tokens, w width, n MLP of a vision transformer; v both
widths together.

    Llama, per decision       layers (T 2 (4 d^2 + 3 d m) + 4 T^2 d)
    vision, per image         (depth - 1) (P 2 (4 w^2 + 2 w n) + 4 P^2 w), of both transformers, and the patches
    projector, per image      256 * 2 (4 v^2 + 4 v d + d^2)

Not counted: adapters (1 % at rank 32), heads, elementwise work, and recomputation, so that utilisation compares a run
with its minimum work.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.policies.openvla_oft.config import PATCH_SIZE, OFTConfig, ViTConfig


@dataclass(frozen=True, slots=True)
class DecisionFlops:
    """FLOPs per decision."""

    llama: float  # of one forward pass
    vision: float  # of one forward pass, all images, with the projector

    @property
    def forward(self) -> float:
        """Return the FLOPs of one decision of the inference worker."""
        return self.llama + self.vision

    def update(self, *, train_backbone: bool) -> float:
        """Return the FLOPs of one consumed decision: forward, and backward to activations.

        Trained weights add theirs.
        """
        return 3 * self.forward if train_backbone else 2 * self.llama + self.vision


def decision_flops(config: OFTConfig, *, num_tokens: int, num_images: int) -> DecisionFlops:
    """Count the FLOPs of one decision.

    Args:
        config: dimensions of the network.
        num_tokens: tokens of the sequence, T.
        num_images: per observation.
    """
    d, m, t = config.llama.hidden_size, config.llama.intermediate_size, num_tokens
    llama = config.llama.num_hidden_layers * (t * 2 * (4 * d * d + 3 * d * m) + 4 * t**2 * d)
    v = config.vision_dim
    projector = config.num_patches * 2 * (4 * v * v + 4 * v * d + d * d)
    image = projector + sum(_vit_flops(config, vit) for vit in (config.dinov2, config.siglip))
    return DecisionFlops(llama=float(llama), vision=float(num_images * image))


def _vit_flops(config: OFTConfig, vit: ViTConfig) -> int:
    tokens, w = config.num_patches + vit.num_prefix_tokens, vit.embed_dim
    blocks = (vit.depth - 1) * (tokens * 2 * (4 * w * w + 2 * w * vit.mlp_dim) + 4 * tokens**2 * w)
    return blocks + config.num_patches * 2 * 3 * PATCH_SIZE**2 * w
