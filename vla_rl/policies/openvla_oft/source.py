"""Where a policy's weights come from: random ones from a seed, or a local checkpoint. Reads no weights until asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vla_rl.policies.openvla_oft.config import OFTConfig, read_config
from vla_rl.policies.openvla_oft.files import CheckpointFiles, find_files
from vla_rl.policies.openvla_oft.hub import checkpoint_directory
from vla_rl.policies.openvla_oft.pixels import PixelNormalization, read_pixel_normalization
from vla_rl.policies.openvla_oft.profiles import Profile, resolve_profile
from vla_rl.policies.openvla_oft.statistics import (
    DatasetStatistics,
    checkpoint_statistics,
    libero_statistics,
    select_statistics,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from vla_rl.policies.openvla_oft.model import OpenVLAOFT

TINY = "tiny"
RANDOM_7B = "random-7b"
RANDOM_SOURCES = (TINY, RANDOM_7B)


@dataclass(frozen=True, slots=True)
class Source:
    """Everything about a checkpoint but its weights. `files` is None where they are random."""

    origin: str  # the directory, or the name of random weights
    config: OFTConfig
    profile: Profile
    proprio: bool
    l1_head: bool  # an L1 regression head lies beside the shards
    pixels: PixelNormalization
    statistics: Mapping[str, Any]
    files: CheckpointFiles | None

    def dataset_statistics(self, key: str) -> DatasetStatistics:
        """The statistics named `key`; ValueError when absent, or without the proprioception that is fed."""
        selected = select_statistics(self.statistics, key)
        if self.proprio and selected.proprio is None:
            raise ValueError(f"statistics {selected.key!r} have no proprio block, but proprioception is fed")
        return selected

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, or the tiny one."""
        if self.files is None:
            from vla_rl.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer

            return tiny_tokenizer()
        from vla_rl.policies.openvla_oft.prompts import read_tokenizer

        return read_tokenizer(self.files.directory)

    def fill(self, model: OpenVLAOFT, *, seed: int, device: torch.device) -> None:
        """Give the network its weights."""
        if self.files is None:
            from vla_rl.policies.openvla_oft.tiny import fill_randomly

            # Billions of numbers are drawn where they go; the tiny model is the same on every device.
            fill_randomly(model, seed=seed, device=device, draw_on=device if self.origin == RANDOM_7B else None)
        else:
            from vla_rl.policies.openvla_oft.checkpoint import fill_model

            fill_model(model, dataclasses.replace(self.files, action_head=None), device=device)


def find_source(checkpoint: str, *, profile: str, image_size: int | None, proprio: bool) -> Source:
    """Look a checkpoint up.

    Args:
        checkpoint: `tiny` or `random-7b` (random weights, scaled down or of the real size), a directory of shards or of
            an adapter, or a hub id that is in the local cache.
        profile: `auto` or a family's name.
        image_size: pixels a side; None for the checkpoint's own.
        proprio: for random weights; a checkpoint feeds proprioception where it has a projector.

    Raises:
        ValueError: the directory, its architecture, the profile or the image size does not fit.
    """
    if checkpoint in RANDOM_SOURCES:
        return _random(checkpoint, profile=profile, image_size=image_size, proprio=proprio)
    files = find_files(checkpoint_directory(checkpoint, download=False))
    directory = files.directory
    config = read_config(directory)
    if image_size not in (None, config.image_size):
        raise ValueError(f"image_size is {image_size}, but {directory} was trained on {config.image_size} pixels")
    l1_head = files.action_head is not None
    return Source(
        origin=str(files.home),
        config=config,
        profile=resolve_profile(profile, has_l1_head=l1_head),
        proprio=files.proprio_projector is not None,
        l1_head=l1_head,
        pixels=read_pixel_normalization(directory),
        statistics=checkpoint_statistics(directory, files.home),
        files=files,
    )


def _random(name: str, *, profile: str, image_size: int | None, proprio: bool) -> Source:
    from vla_rl.policies.openvla_oft.tiny import IMAGE_SIZE, tiny_config

    if name == TINY:
        config = tiny_config(image_size=IMAGE_SIZE if image_size is None else image_size)
    else:
        config = OFTConfig()
        if image_size not in (None, config.image_size):
            raise ValueError(
                f"image_size is {image_size}, but {name} has the {config.image_size} pixels of the original"
            )
    return Source(
        origin=name,
        config=config,
        profile=resolve_profile(profile, has_l1_head=False),
        proprio=proprio,
        l1_head=False,
        pixels=PixelNormalization(),
        statistics=libero_statistics(),
        files=None,
    )
