"""Adapters loaded and merged by peft itself, to compare exports with. The only importer of peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla_rl.policies.openvla_oft.model import OFTNetwork


@contextmanager
def adapted_by_peft(model: OFTNetwork, folder: Path) -> Iterator[None]:
    """Put a folder's adapter into a network with peft: unmerged inside the block, merged by peft at its end.

    Args:
        model: the base, with its weights in place. Its adapted layers are peft's own inside the block and plain again
            after it.
        folder: folder in peft's layout. Factors of layers that the network omits, because they never reach the output,
            are left out.
    """
    from peft import PeftModel

    config = model.config
    taken: Any = model
    taken.config = {"model_type": "custom"}  # peft expects a mapping in place of the network's dimensions
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about fields that `adapter_config` has checked
            wrapped = PeftModel.from_pretrained(taken, str(folder)).eval()
        yield
        wrapped.merge_and_unload()
    finally:
        taken.config = config
