"""Sources of a network's weights: random ones from a seed, or a local checkpoint. Reads no weights until asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vla_rl.policies.openvla_oft import tiny
from vla_rl.policies.openvla_oft.checkpoint_files import CheckpointFiles, find_files, require_directory
from vla_rl.policies.openvla_oft.checkpoint_reader import DTYPES, Network, check_stored, empty_model, fill_model
from vla_rl.policies.openvla_oft.config import RANDOM_7B, TINY, OFTConfig, read_config
from vla_rl.policies.openvla_oft.dataset_statistics import (
    DatasetStatistics,
    Statistics,
    checkpoint_statistics,
    libero_statistics,
    select_statistics,
    stored_blocks,
)
from vla_rl.policies.openvla_oft.hub import checkpoint_directory
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.pixels import PixelNormalization, read_pixel_normalization
from vla_rl.policies.openvla_oft.profiles import Profile, resolve_profile
from vla_rl.policies.openvla_oft.random_weights import fill_well_conditioned
from vla_rl.policies.parameters import fill_linear_and_norms

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Source:
    """Everything about a checkpoint except its weights. `files` is None for random weights."""

    origin: str  # directory, or name of random weights
    config: OFTConfig
    profile: Profile
    proprio: bool  # whether proprioception is fed
    files: CheckpointFiles | None
    measured: Mapping[str, Any] | None = None  # statistics of the demonstrations it is trained on, by data set
    new_proprio: bool = False  # the projector of proprioception is a new one, which no file holds

    @property
    def l1_head(self) -> bool:
        """Return whether an L1 regression head lies beside the shards."""
        return self.files is not None and self.files.action_head is not None

    @property
    def stored_dtype(self) -> torch.dtype:
        """Return the dtype that `config.json` names; ValueError if this program does not compute in it."""
        if self.config.dtype not in DTYPES:
            raise ValueError(
                f"{self.origin}: config.json names the dtype {self.config.dtype!r}, expected one of {sorted(DTYPES)}"
            )
        return DTYPES[self.config.dtype]

    @property
    def pixels(self) -> PixelNormalization:
        """Return the frames' normalisation; ValueError if preprocessor_config.json does not give it."""
        return PixelNormalization() if self.files is None else read_pixel_normalization(self.files.directory)

    @property
    def statistics(self) -> Statistics:
        """Return the known statistics of data sets, file by file; only its demonstrations', if there are any."""
        if self.measured is not None:
            return [stored_blocks(self.measured, "demonstrations: ")]
        if self.files is None:
            return [stored_blocks(libero_statistics(), f"{self.origin}: ")]
        return checkpoint_statistics(*self.files.folders, config=self.files.directory / "config.json")

    def dataset_statistics(self, suite: str, key: str | None = None) -> DatasetStatistics:
        """Return the statistics that scale actions in a suite.

        Args:
            suite: suite whose own statistics are the default.
            key: key of a data set; None for the one that an export recorded, if any.

        Raises:
            ValueError: they are absent or malformed, or lack an input of the policy.
        """
        recorded = None if self.files is None or self.measured is not None else self.files.statistics
        return select_statistics(
            self.statistics,
            suite,
            key=recorded if key is None else key,
            action_dim=self.config.action_dim,
            proprio_dim=self.config.proprio_dim if self.proprio else None,
        )

    def tokenizer(self) -> Tokenizer:
        """Return the checkpoint's tokenizer, or the tiny one."""
        if self.files is None:
            from vla_rl.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer

            return tiny_tokenizer()
        from vla_rl.policies.openvla_oft.prompts import read_tokenizer

        return read_tokenizer(self.files.directory)

    def empty_network(self, kind: type[Network], *, dtype: torch.dtype) -> Network:
        """Return a network of this kind on the meta device, with the components that the source has."""
        return empty_model(kind, self.config, self.profile, proprio=self.proprio, l1_head=self.l1_head, dtype=dtype)

    def check(self, model: OFTNetwork) -> None:
        """Compare the files with what the network needs, without reading weights; ValueError if they do not fit."""
        if self.files is not None:
            with self._as_stored(model):
                check_stored(model, self.files)

    def fill(self, model: OFTNetwork, *, seed: int, device: torch.device, draw_on: torch.device | None = None) -> None:
        """Load the network's weights.

        Args:
            model: an empty network of this source.
            seed: seed of random weights.
            device: device of the weights.
            draw_on: device that draws the weights of `random-7b`; default: `device`. The tiny model is the same on all
                devices.
        """
        if self.origin == RANDOM_7B:
            fill_well_conditioned(model, seed=seed, device=device, draw_on=draw_on)
        elif self.files is None:
            tiny.fill_randomly(model, seed=seed, device=device)
        else:
            with self._as_stored(model):
                fill_model(model, self.files, device=device)
            if self.new_proprio and model.proprio_projector is not None:
                fill_linear_and_norms(model.proprio_projector, seed=seed, device=device, prefix="proprio_projector.")

    @contextmanager
    def _as_stored(self, model: OFTNetwork) -> Iterator[None]:
        """Take out of the network what its files do not hold."""
        projector = model.proprio_projector
        if self.new_proprio:
            model.proprio_projector = None
        try:
            yield
        finally:
            model.proprio_projector = projector


def find_source(
    checkpoint: str,
    *,
    profile: str,
    image_size: int | None,
    proprio: bool | None,
    accept_l1_head: bool = False,
    on_demonstrations: bool = False,
) -> Source:
    """Find the source that a policy is built from.

    Args:
        checkpoint: `tiny` or `random-7b` (random weights, scaled down or of the real size), a directory of shards or of
            an adapter, or a hub id that is in the local cache.
        profile: `auto` or a family's name.
        image_size: pixels per side; None for the checkpoint's own.
        proprio: feed proprioception to random weights; None: `tiny` is fed it, and `random-7b` is not, like the public
            checkpoints with the discrete head. A checkpoint is fed it if it has a projector, whatever this says.
        accept_l1_head: the policy only acts: a checkpoint with an L1 head can act but not be trained.
        on_demonstrations: the policy is to be trained on demonstrations, which decides what a refusal advises.

    Raises:
        ValueError: the directory, its head, its architecture, the profile or the image size does not fit.
    """
    if checkpoint == TINY:
        config = tiny.tiny_config(image_size=tiny.IMAGE_SIZE if image_size is None else image_size)
        return _random(checkpoint, config, profile=profile, proprio=proprio is not False)
    if checkpoint == RANDOM_7B:
        source = _random(checkpoint, OFTConfig(), profile=profile, proprio=bool(proprio))
    else:
        source = find_checkpoint(_directory_of(checkpoint), profile=profile)
        if not accept_l1_head:
            _refuse_l1_head(source, on_demonstrations=on_demonstrations)
    if image_size not in (None, source.config.image_size):
        raise ValueError(f"image_size is {image_size}, but {source.origin} takes {source.config.image_size} pixels")
    return source


def _directory_of(checkpoint: str) -> Path:
    """Return the local directory of a recipe's checkpoint.

    Raises:
        ValueError: there is none; names the field.
    """
    try:
        directory = checkpoint_directory(checkpoint, download=False)
        require_directory(directory)
    except ValueError as error:
        raise ValueError(f"policy.checkpoint: {error}") from error
    return directory


def trained_anew(source: Source, measured: Mapping[str, Any], *, num_images: int, add_proprio: bool) -> Source:
    """Return a source whose policy is about to be trained on demonstrations.

    Args:
        source: of the weights that it starts from.
        measured: `dataset_statistics.json` of the demonstrations.
        num_images: cameras of the demonstrations, whatever the weights were trained with.
        add_proprio: feed proprioception, by a new projector if the files hold none.
    """
    new_proprio = add_proprio and source.files is not None and not source.proprio
    return replace(
        source,
        profile=replace(source.profile, num_images=num_images),
        measured=measured,
        proprio=source.proprio or new_proprio,
        new_proprio=new_proprio,
    )


def find_checkpoint(directory: Path, *, profile: str, adapter: Path | None = None) -> Source:
    """Find a local checkpoint, whatever its head.

    Args:
        directory: folder of shards, or of an adapter that names its base.
        profile: `auto` or a family's name.
        adapter: folder of an adapter to merge into the shards.

    Raises:
        ValueError: the directory, its architecture or the profile does not fit.
    """
    files = find_files(directory, adapter=adapter)
    return Source(
        origin=str(files.home),
        config=read_config(files.directory),
        profile=resolve_profile(
            profile, has_l1_head=files.action_head is not None, recorded=files.profile, num_images=files.num_images
        ),
        proprio=files.proprio_projector is not None,
        files=files,
    )


def _random(name: str, config: OFTConfig, *, profile: str, proprio: bool) -> Source:
    resolved = resolve_profile(profile, has_l1_head=False)
    return Source(origin=name, config=config, profile=resolved, proprio=proprio, files=None)


def _refuse_l1_head(source: Source, *, on_demonstrations: bool) -> None:
    """Refuse an L1 head before other checks of the folder: it alone rules out training.

    Args:
        source: of the checkpoint.
        on_demonstrations: the training would be supervised.
    """
    if not source.l1_head:
        return
    fault = (
        f"{source.origin}: its trained head is an L1 regression (an action_head file lies beside the shards). "
        "Its rows of lm_head for action tokens were never trained, "
    )
    if on_demonstrations:
        raise ValueError(
            f"{fault}and its other weights were trained for the L1 head, which `vla-rl sft` does not train. Train the "
            "token head from the base checkpoint, as its authors trained theirs: run `hf download "
            "openvla/openvla-7b`, and add policy.checkpoint=openvla/openvla-7b"
        )
    raise ValueError(
        f"{fault}so there is nothing to sample from and reinforcement learning of tokens cannot start here; `vla-rl "
        "eval` takes it as it is. Use a checkpoint with the discrete head: those of SimpleVLA-RL by Haozhan72 (profile "
        "simplevla), those of RLinf for LIBERO (profile rlinf), or one that `vla-rl sft` has trained"
    )
