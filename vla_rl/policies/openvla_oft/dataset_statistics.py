"""Normalisation statistics: the choice of the data set that scales a checkpoint's actions and proprioception."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from vla_rl.policies.action_tokens import Quantiles
from vla_rl.policies.openvla_oft.json_files import read_json

STATISTICS_FILE = "dataset_statistics.json"
SUFFIX = "_no_noops"  # the published LIBERO data sets have idle steps removed


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Quantiles of one data set."""

    key: str
    action: Quantiles
    proprio: Quantiles | None  # None if no proprioception is fed


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """Unchecked statistics of one data set: checkpoints also hold those of robots that nobody asks for."""

    key: str  # key of the data set
    place: str  # file and field, for messages
    content: object


Statistics = Sequence[Mapping[str, StoredBlock]]
"""Statistics of data sets by key, file by file; the first file says what a checkpoint was trained on."""


def libero_statistics() -> dict[str, Any]:
    """Return published quantiles of the LIBERO suites, for the tiny model. Entry `_source` marks stand-ins."""
    text = resources.files("vla_rl.policies.openvla_oft").joinpath("libero_statistics.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def checkpoint_statistics(*folders: Path, config: Path) -> Statistics:
    """Return all statistics of data sets in a checkpoint.

    The original code replaces `norm_stats` by `dataset_statistics.json`; other programs keep both. So the first file
    says what the checkpoint was trained on, and the rest is used only when asked for by name.

    Args:
        folders: folders that may hold dataset_statistics.json, the most specific first.
        config: config.json, whose `norm_stats` come last.

    Raises:
        ValueError: a file does not hold an object of data sets.
    """
    norm_stats = read_json(config).get("norm_stats") or {}
    if not isinstance(norm_stats, dict):
        raise ValueError(f"{config}: norm_stats is a {type(norm_stats).__name__}; expected an object of data sets")
    paths = [path for folder in folders if (path := folder / STATISTICS_FILE).is_file()]
    found = [stored_blocks(read_json(path), f"{path}: ") for path in paths]
    return [*found, stored_blocks(norm_stats, f"{config}: norm_stats.")]


def stored_blocks(content: Mapping[str, object], place: str) -> dict[str, StoredBlock]:
    """Return a file's statistics by data set; `place` precedes the key in messages."""
    return {key: StoredBlock(key, f"{place}{key}", each) for key, each in content.items() if not key.startswith("_")}


def select_statistics(
    available: Statistics, suite: str, *, key: str | None = None, action_dim: int, proprio_dim: int | None
) -> DatasetStatistics:
    """Return the statistics that scale a policy's actions in a suite.

    Args:
        available: statistics of a checkpoint, the file with precedence first.
        suite: suite whose own statistics are used if `key` is None: named like it, or with `_no_noops` appended. If the
            checkpoint has none of that name but a single data set, it was trained on that.
        key: key of a data set.
        action_dim: components of an action.
        proprio_dim: components of proprioception; None if none is fed, and stored ones are then ignored.

    Raises:
        ValueError: there are none, they are malformed, or they do not fit these actions and this proprioception.
    """
    block = _asked(available, key) if key is not None else _of_suite(available, suite)
    return DatasetStatistics(
        key=block.key,
        action=_quantiles(block, "action", action_dim),
        proprio=None if proprio_dim is None else _quantiles(block, "proprio", proprio_dim),
    )


def _asked(available: Statistics, key: str) -> StoredBlock:
    found = next((layer[key] for layer in available if key in layer), None)
    if found is None:
        raise ValueError(f"no normalisation statistics {key!r}; {_choices(available)}")
    return found


def _of_suite(available: Statistics, suite: str) -> StoredBlock:
    names = (suite, suite + SUFFIX)
    layers = [layer for layer in available if layer]
    for candidate in names if layers else ():
        if candidate in layers[0]:
            return layers[0][candidate]
    # The original code ignores `norm_stats`, the last of these, if there is a file: every fine-tuning leaves other
    # robots' statistics in it. The statistics of an adapter's base may be meant.
    elsewhere = any(candidate in layer for layer in available[:-1] for candidate in names)
    if layers and len(layers[0]) == 1 and not elsewhere:
        (sole,) = layers[0].values()
        if layers[0] is not available[-1] or sole.key.startswith("libero"):
            return sole
    raise ValueError(f"no normalisation statistics for {suite!r} (nor {names[1]!r}); {_choices(available)}")


def _choices(available: Statistics) -> str:
    layers = [layer for layer in available if layer]
    if not layers:
        return "the checkpoint has: none. Copy dataset_statistics.json from where it was trained"
    keys, others = sorted(layers[0]), sorted({key for layer in layers[1:] for key in layer} - {*layers[0]})
    listed = ", ".join(keys) + (f"; from its base: {', '.join(others)}" if others else "")
    return (
        f"the checkpoint has: {listed}. Say which was trained on: policy.statistics={keys[0]} in a recipe or behind "
        f"`vla-rl train`, --statistics {keys[0]} behind `vla-rl eval`"
    )


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
