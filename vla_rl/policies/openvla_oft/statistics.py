"""Normalisation statistics: which data set a checkpoint's actions and proprioception are scaled by."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from vla_rl.policies.action_tokens import Quantiles
from vla_rl.policies.openvla_oft.json_files import read_json

STATISTICS_FILE = "dataset_statistics.json"
SUFFIX = "_no_noops"  # the published LIBERO data sets were filtered of idle steps


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """The quantiles of one data set."""

    key: str
    action: Quantiles
    proprio: Quantiles | None  # None where none is fed


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """What a file says of one data set, not yet looked at: a checkpoint has blocks of robots that nobody asks for."""

    place: str  # file and field, for messages
    content: object


def libero_statistics() -> dict[str, Any]:
    """Published quantiles of the LIBERO suites, for the tiny model. The `_source` entry says what is a stand-in."""
    text = resources.files("vla_rl.policies.openvla_oft").joinpath("libero_statistics.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def checkpoint_statistics(directory: Path, *others: Path) -> dict[str, StoredBlock]:
    """Everything a checkpoint knows: `norm_stats` of config.json, overridden by dataset_statistics.json.

    Args:
        directory: with config.json.
        others: directories whose dataset_statistics.json, where there is one, overrides what came before.

    Raises:
        ValueError: a file does not hold an object of data sets.
    """
    config = directory / "config.json"
    norm_stats = read_json(config).get("norm_stats") or {}
    if not isinstance(norm_stats, dict):
        raise ValueError(f"{config}: norm_stats is a {type(norm_stats).__name__}; expected an object of data sets")
    merged = {key: StoredBlock(f"{config}: norm_stats.{key}", block) for key, block in norm_stats.items()}
    for path in (place / STATISTICS_FILE for place in (directory, *others)):
        if path.is_file():
            merged |= {key: StoredBlock(f"{path}: {key}", block) for key, block in read_json(path).items()}
    return merged


def select_statistics(
    available: Mapping[str, StoredBlock], key: str, *, action_dim: int, proprio_dim: int | None
) -> DatasetStatistics:
    """The statistics named `key`, or `key` with `_no_noops` behind it.

    Args:
        available: of a checkpoint.
        key: of a data set.
        action_dim: components of an action.
        proprio_dim: components of proprioception; None where none is fed, and what is stored of it does not matter.

    Raises:
        ValueError: there are none, they are malformed, or of something else than these actions and this proprioception.
    """
    for candidate in (key, key + SUFFIX):
        if candidate in available and not candidate.startswith("_"):
            block = available[candidate]
            return DatasetStatistics(
                key=candidate,
                action=_quantiles(block, "action", action_dim),
                proprio=None if proprio_dim is None else _quantiles(block, "proprio", proprio_dim),
            )
    keys = ", ".join(sorted(name for name in available if not name.startswith("_"))) or "none"
    raise ValueError(f"no normalisation statistics for {key!r} (nor {key + SUFFIX!r}); the checkpoint has: {keys}")


def _quantiles(block: StoredBlock, name: str, length: int) -> Quantiles:
    where = f"{block.place}.{name}"
    part = block.content.get(name) if isinstance(block.content, dict) else None
    if not isinstance(part, dict):
        raise ValueError(f"{where} is {reprlib.repr(part)}; expected an object with the lists q01 and q99")
    for quantile in ("q01", "q99"):
        if not _is_list(part.get(quantile), length, int | float) or not np.isfinite(part[quantile]).all():
            raise ValueError(f"{where}.{quantile} is {part.get(quantile)}; expected {length} finite numbers")
    if "mask" in part and not _is_list(part["mask"], length, bool):
        raise ValueError(f"{where}.mask is {part['mask']}; expected {length} times true or false")
    quantiles = Quantiles.from_mapping(part)
    if (quantiles.q99 < quantiles.q01).any():
        raise ValueError(f"{where}: q99 {part['q99']} is below q01 {part['q01']} somewhere; expected at least q01")
    return quantiles


def _is_list(value: object, length: int, kind: type | UnionType) -> bool:
    return isinstance(value, list) and len(value) == length and all(isinstance(each, kind) for each in value)
