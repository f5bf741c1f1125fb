"""Adapters loaded and merged by peft itself: what an export is compared with. The only importer of peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.policies.openvla_oft.model import OpenVLAOFT


@contextmanager
def adapted_by_peft(model: OpenVLAOFT, folder: Path) -> Iterator[None]:
    """Let peft put the adapter of a folder into a network: unmerged inside the block, merged by peft at its end.

    Args:
        model: the base, with its weights in place. Its adapted layers are peft's own inside the block and plain again
            after it.
        folder: of peft's layout. Factors of layers that the network does not hold, because they never reach the output,
            are left out.
    """
    from peft import PeftModel

    config = model.config
    taken: Any = model
    taken.config = {"model_type": "custom"}  # peft asks for a mapping where the network has its dimensions
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what `adapter_config` has looked at
            wrapped = PeftModel.from_pretrained(taken, str(folder)).eval()
        yield
        wrapped.merge_and_unload()
    finally:
        taken.config = config
