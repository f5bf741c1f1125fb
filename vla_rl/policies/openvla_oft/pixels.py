"""Conversion of uint8 frames to the normalised channels that the two vision transformers take."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

NUM_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class PixelNormalization:
    """Mean and deviation per channel, for DINOv2 and then SigLIP.

    The published checkpoints were trained with constants rounded to bfloat16; these are the defaults.
    """

    mean: tuple[tuple[float, ...], ...] = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
    std: tuple[tuple[float, ...], ...] = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))


def read_pixel_normalization(directory: Path) -> PixelNormalization:
    """Read `tvf_normalize_params` of preprocessor_config.json; its `means` and `stds` were not used in training."""
    path = directory / "preprocessor_config.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found; copy it from the published checkpoint")
    try:
        blocks = json.loads(path.read_text(encoding="utf-8"))["tvf_normalize_params"]
        mean, std = (tuple(tuple(map(float, block[name])) for block in blocks) for name in ("mean", "std"))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot read tvf_normalize_params (two entries with mean and std): {error}"
        ) from error
    if len(mean) != 2 or any(len(row) != NUM_CHANNELS for row in (*mean, *std)):
        raise ValueError(
            f"{path}: tvf_normalize_params must have two entries of three channels, found {mean} and {std}"
        )
    if not all(map(math.isfinite, itertools.chain(*mean, *std))) or min(itertools.chain(*std)) <= 0:
        raise ValueError(
            f"{path}: tvf_normalize_params has the means {mean} and deviations {std}; expected finite numbers, and "
            "deviations above 0"
        )
    return PixelNormalization(mean=mean, std=std)


def normalize_pixels(frames: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Convert (B, N, H, W, 3) uint8 to (B, 6 N, H, W) float32; mean and std are (2, 3, 1, 1)."""
    batch, _, height, width, _ = frames.shape
    scaled = frames.permute(0, 1, 4, 2, 3).float().div(255.0).unsqueeze(2)
    return ((scaled - mean) / std).reshape(batch, -1, height, width)


def normalization_tensors(normalization: PixelNormalization) -> tuple[Tensor, Tensor]:
    """Return mean and std as (2, 3, 1, 1) float32 on the CPU."""
    shape = (2, NUM_CHANNELS, 1, 1)
    mean = torch.tensor(normalization.mean, dtype=torch.float32, device="cpu").reshape(shape)
    return mean, torch.tensor(normalization.std, dtype=torch.float32, device="cpu").reshape(shape)
