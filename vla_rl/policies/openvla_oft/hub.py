"""Checkpoints by their names on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATTERNS = ["*.json", "*.safetensors", "*.pt", "tokenizer.model"]  # everything that is read; no code


def checkpoint_directory(name: str | Path, *, download: bool) -> Path:
    """The local directory of a checkpoint.

    Args:
        name: a directory, or a hub id like `organisation/model` where neither it nor its parent is a path here.
        download: fetch a hub id's files where the local cache lacks them, for a name that was typed: it asks for them.
            A name that stands in a recipe or in an adapter's file asks for nothing: it is looked up in the cache.

    Raises:
        ValueError: neither a path nor a model that can be had; the message says what to do.
    """
    directory = Path(name).expanduser()
    if directory.parent.exists() or not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return directory
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=not download, allow_patterns=_PATTERNS))
    except (ImportError, OSError, ValueError) as error:  # the hub's own errors are kinds of the latter two
        raise ValueError(
            f"checkpoint {name!r} is not a directory here, and as the name of a model on the Hugging Face hub it is "
            f"{'neither in the local cache nor to be had' if download else 'not in the local cache'}: "
            f"run `hf download {name}` where there is a network, or give a local checkpoint folder"
        ) from error
