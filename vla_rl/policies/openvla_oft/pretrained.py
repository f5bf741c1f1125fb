"""The network with its weights from a checkpoint: what this package offers to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch

from vla_rl.policies.openvla_oft.hub import checkpoint_directory
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.self_test import warn_of_faults
from vla_rl.policies.openvla_oft.source import find_checkpoint


class OpenVLAOFT(OFTNetwork):
    """OpenVLA-OFT network that can be loaded by the name of a checkpoint."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        adapter: str | Path | None = None,
        profile: str = "auto",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Load a checkpoint in the public layout. No code in it is executed, and no tokenizer is needed.

        Tensors stored in the requested dtype stay views of the mapped files until they are written to: do not change a
        file in place while a network loaded from it is in use (replacing the file is safe). A network that looks broken
        (see `self_test.network_faults`) is loaded with a warning. No weight requires a gradient until it is asked to
        (`requires_grad_`).

        Args:
            path: its directory; the folder of an adapter that names its base, which is then merged in float32; or a hub
                id, which is downloaded if the local cache lacks it. A `lora_adapter/` beside shards is already merged
                into them and is not read.
            adapter: folder of an adapter to merge into the checkpoint at `path`.
            profile: `auto` or a name of `profiles.PROFILES`.
            dtype: dtype of the weights; default: that in `config.json`.
            device: default: CPU.

        Raises:
            ValueError: the directory lacks files, holds another architecture, or tensors are missing or misshapen.
        """
        source = find_checkpoint(
            checkpoint_directory(path, download=True),
            profile=profile,
            adapter=None if adapter is None else Path(adapter),
        )
        model = source.empty_network(cls, dtype=dtype or source.stored_dtype)
        source.fill(model, seed=0, device=torch.device(device or "cpu"))
        warn_of_faults(model, source.origin)
        return model.eval()
