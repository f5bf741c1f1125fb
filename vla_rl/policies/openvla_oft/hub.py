"""Checkpoints by their names on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PATTERNS = ["*.json", "*.safetensors", "*.pt", "tokenizer.model"]  # all files that are read; no code


def is_hub_id(name: str) -> bool:
    """Return whether a checkpoint's name is a hub id: `organisation/model`, where neither is a path here."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).parent.exists()


def checkpoint_directory(name: str | Path, *, download: bool) -> Path:
    """Return the local directory of a checkpoint.

    Args:
        name: a directory, or a hub id.
        download: fetch a hub id's missing files, for a name that the user typed. A name in a recipe or in an adapter's
            file is only looked up in the local cache.

    Raises:
        ValueError: neither a path nor an available model; the message gives the reason and the fix.
    """
    if not isinstance(name, str) or not is_hub_id(name):
        return Path(name).expanduser()
    try:
        return _snapshot(name, download=download)
    except (ImportError, OSError, ValueError) as error:  # the hub's own errors derive from the latter two
        reason = _reason(error, name) if download else f"not in the local cache: run `hf download {name}`"
        raise ValueError(
            f"checkpoint {name!r} is not a directory here, and as the name of a model on the Hugging Face hub it is "
            f"{reason}, or give a local checkpoint folder ({_first_line(error)})"
        ) from error


def _snapshot(name: str, *, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of its HTTP library, whichever that is

    try:
        return Path(snapshot_download(name, local_files_only=not download, allow_patterns=_PATTERNS))
    except HTTPError as error:
        if isinstance(error, OSError):
            raise
        raise ConnectionError(f"{type(error).__name__}: {error}") from error  # interrupted


def _reason(error: Exception, name: str) -> str:
    """Return why a model is unavailable, and what to do."""
    if isinstance(error, ImportError):
        return "not available: install huggingface_hub"
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):  # before the next one, of which it is a subclass
        return f"gated: accept its terms on https://huggingface.co/{name} and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return "unknown, or private: check the spelling, log in with `hf auth login` if it is yours"
    return f"not available now: run `hf download {name}` where there is a network"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
