"""Normalisation statistics: which data set a checkpoint's actions and proprioception are scaled by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from vla_rl.policies.action_tokens import Quantiles
from vla_rl.policies.openvla_oft.json_files import read_json

SUFFIX = "_no_noops"  # the published LIBERO data sets were filtered of idle steps


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """The quantiles of one data set."""

    key: str
    action: Quantiles
    proprio: Quantiles | None  # None where the file has none


def libero_statistics() -> dict[str, Any]:
    """Published quantiles of the LIBERO suites, for the tiny model. The `_source` entry says what is a stand-in."""
    text = resources.files("vla_rl.policies.openvla_oft").joinpath("libero_statistics.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def checkpoint_statistics(directory: Path, *others: Path) -> dict[str, Any]:
    """Everything a checkpoint knows: `norm_stats` of config.json, overridden by dataset_statistics.json.

    Args:
        directory: with config.json.
        others: directories whose dataset_statistics.json, where there is one, overrides what came before.
    """
    merged = dict(read_json(directory / "config.json").get("norm_stats") or {})
    for path in (place / "dataset_statistics.json" for place in (directory, *others)):
        merged |= read_json(path) if path.is_file() else {}
    return merged


def select_statistics(available: Mapping[str, Any], key: str) -> DatasetStatistics:
    """The statistics named `key`, or `key` with `_no_noops` behind it; ValueError lists the keys there are."""
    for candidate in (key, key + SUFFIX):
        if candidate in available and not candidate.startswith("_"):
            block = available[candidate]
            proprio = Quantiles.from_mapping(block["proprio"]) if block.get("proprio") else None
            return DatasetStatistics(key=candidate, action=Quantiles.from_mapping(block["action"]), proprio=proprio)
    keys = ", ".join(sorted(name for name in available if not name.startswith("_"))) or "none"
    raise ValueError(f"no normalisation statistics for {key!r} (nor {key + SUFFIX!r}); the checkpoint has: {keys}")
