"""Peft's adapter_config.json: fields that are computed here, fields that change no weight, and fields that are refused.

Every release of peft adds a field or two. Each field of `peft.LoraConfig` is in exactly one of the tables below; an
unknown field is refused unless it is off. Tests compare the computed fields with peft's own merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.files import atomic_write_json
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.json_files import is_positive, read_json

CONFIG_FILE = "adapter_config.json"
BASE_FIELD = "base_model_name_or_path"

COMPUTED = frozenset(
    (
        "peft_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "init_lora_weights",
    )
)

# Fields that a merged weight does not depend on, once the factors are trained.
WITHOUT_EFFECT = frozenset(
    (
        "task_type",
        "auto_mapping",
        "peft_version",
        BASE_FIELD,
        "revision",
        "inference_mode",
        "lora_dropout",  # acts only in training
        "fan_in_fan_out",  # peft turns it off for linear layers, and convolutions do not read it
        "megatron_core",  # read only with `megatron_config`
        "qalora_group_size",  # read only with `use_qalora`
        "loftq_config",  # these four are read only with `init_lora_weights`
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "runtime_config",  # device on which peft computes
        "ensure_weight_tying",  # lm_head of this architecture is never tied to the embedding
    )
)

_MERGE = (
    "merge it into its base with peft (`PeftModel.from_pretrained(base, FOLDER).merge_and_unload()`) and give the "
    "merged checkpoint"
)
_NO_MERGE = "neither this program nor peft can merge it into weights: use an adapter that was trained without it"

# Fields that mean something other than W + scaling · B A: their meaning and the fix.
REFUSED: Mapping[str, tuple[str, str]] = {
    "bias": ("trains biases too", _MERGE),
    "lora_bias": ("gives the factors a bias", _MERGE),
    "use_dora": ("scales every row of the adapted weight (DoRA)", _MERGE),
    "layer_replication": ("repeats layers of the base", "use an adapter that was trained without it"),
    "target_parameters": ("adapts parameters instead of layers", _MERGE),
    "trainable_token_indices": ("replaces rows of the embedding", _MERGE),
    "use_bdlora": ("stores factors as diagonal blocks (BD-LoRA)", _MERGE),
    "velora_config": ("changes how the factors are trained and stored (VeLoRA)", _MERGE),
    "kasa_config": ("cuts the base's weights down before training (KaSA)", _MERGE),
    "monteclora_config": ("draws its factors anew for every forward pass (MonteCLoRA)", _MERGE),
    "megatron_config": ("splits layers as Megatron does", _MERGE),
    "use_qalora": ("pools the layers' inputs (QA-LoRA)", _NO_MERGE),
    "alora_invocation_tokens": ("adapts only what follows certain tokens (aLoRA)", _NO_MERGE),
    "arrow_config": ("chooses among several adapters for every token (Arrow)", _NO_MERGE),
}

_CHOICES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")

# Initialisations that leave the base unchanged: the file holds the trained factors, whatever they started from.
_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_OFF = (None, False, "none")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Ranks and scalings: how much of the product of two factors is added to a weight."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]  # keyed by regular expressions of module names
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's factors."""
        return self.rank_pattern.get(_first_match(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """Return the factor of B A: alpha / rank, or alpha / sqrt(rank) if `use_rslora` (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(_first_match(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_adapter_config(path: Path, adapted: Iterable[str]) -> AdapterConfig:
    """Read adapter_config.json.

    Args:
        path: path of the file.
        adapted: names of the modules whose factors are stored beside it.

    Raises:
        ValueError: it is not a LoRA, or of a kind that is not computed here; a number is malformed; or there are
            factors that peft would not load, because the fields that choose modules omit theirs.
    """
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: expected peft_type LORA, found {config.get('peft_type')!r}")
    problems = list(_refusals(config))
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    for name, kind in (("r", int), ("lora_alpha", float)):
        if not is_positive(config.get(name), kind):
            raise ValueError(f"{path}: {name} is {config.get(name)!r}; expected a positive {kind.__name__}")
    _check_choices(config, path)
    left_out = [module for module in adapted if not is_chosen(config, module)]
    if left_out:
        raise ValueError(
            f"{path}: the fields that choose modules ({', '.join(_CHOICES)}) leave out {', '.join(left_out[:3])}"
            f"{', ...' if len(left_out) > 3 else ''}, whose factors lie beside it: peft would not load them, and the "
            "adapter was trained with them; restore the fields as they were written"
        )
    return AdapterConfig(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rank_pattern=_pattern(config, "rank_pattern", int, path),
        alpha_pattern=_pattern(config, "alpha_pattern", float, path),
        rank_stabilized=config.get("use_rslora") is True,
    )


def write_adapter_config(settings: LoraSection, directory: Path, *, base: str, whole_modules: list[str] | None) -> None:
    """Write adapter_config.json with only the fields of peft 0.11.1, which the original code pins.

    That version raises on unknown fields, and later versions have defaults for missing ones.

    Args:
        settings: settings of the adapters.
        directory: folder of the adapter's weights.
        base: the adapted checkpoint.
        whole_modules: names of modules whose weights the adapter holds whole.
    """
    content: dict[str, Any] = {
        "alpha_pattern": {},
        "auto_mapping": None,
        BASE_FIELD: base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": whole_modules,
        "peft_type": "LORA",
        "r": settings.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted(settings.targets),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    atomic_write_json(directory / CONFIG_FILE, content)


def is_chosen(config: Mapping[str, Any], module: str) -> bool:
    """Return whether the fields that choose modules choose this one.

    Args:
        config: content of adapter_config.json. Without `target_modules`, or with "all-linear", peft chooses by
            inspecting the network, and every module counts as chosen.
        module: its name in the network.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    whole = config.get("modules_to_save") or []
    if (excluded and _is_named(excluded, module)) or any(
        re.match(rf"(^|.*\.){each}($|\..*)", module) for each in whole
    ):
        return False
    if targets in (None, "all-linear"):
        return True
    if not _is_named(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or module in targets or layers is None or layers == []:
        return True
    index = _layer_index(config.get("layers_pattern") or [], module)
    return index is not None and index in ([layers] if isinstance(layers, int) else layers)


def _is_named(names: str | list[str], module: str) -> bool:
    """Return whether a regular expression matches the whole name, or one of the names ends it."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _layer_index(patterns: str | list[str], module: str) -> int | None:
    """Return the number of a module's layer: the first one after a name that the patterns allow."""
    expressions = [patterns] if isinstance(patterns, str) else patterns
    found = [re.match(rf"(?:^|.*?\.){each}\.(?P<index>\d+)\.", module) for each in expressions]
    if not expressions:
        found = [re.match(r".*?\.[^.]*\.(?P<index>\d+)\.", module)]
    return next((int(match["index"]) for match in found if match is not None), None)


def _refusals(config: Mapping[str, Any]) -> Iterable[str]:
    """Yield, in a sentence each, what the configuration asks for that is not computed here."""
    begin = config.get("init_lora_weights", True)
    if not (begin in _INITIALISATIONS and isinstance(begin, str | bool | None)):
        yield (
            f"init_lora_weights is {begin!r}: the base's own weights were changed when its training began, so that its "
            f"factors do not fit the base; {_MERGE}, or let peft convert it where it was trained "
            "(`save_pretrained(FOLDER, path_initial_model_for_weight_conversion=...)`)"
        )
    for name, (meaning, fix) in REFUSED.items():
        if config.get(name) not in _OFF:
            yield f"{name} is {config[name]!r}: it {meaning}, which is not computed here; {fix}"
    for name in sorted(config.keys() - COMPUTED - WITHOUT_EFFECT - REFUSED.keys()):
        if config[name] not in (*_OFF, [], {}):
            yield (
                f"{name} is {config[name]!r}: no such field of peft is known here, so what it does to the weights is "
                f"not either; {_MERGE}"
            )


def _check_choices(config: Mapping[str, Any], path: Path) -> None:
    """Raise if a field that chooses modules holds a value that cannot choose."""
    for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
        value = config.get(name)
        names = [value] if isinstance(value, str) else value
        if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
            raise ValueError(f"{path}: {name} is {value!r}; expected a list of names, a regular expression or null")
        if isinstance(value, str) or name in ("layers_pattern", "modules_to_save"):
            for each in names or []:
                _check_expression(each, name, path)
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [layers]
    if layers is not None and not all(type(each) is int for each in numbers):
        raise ValueError(f"{path}: layers_to_transform is {layers!r}; expected numbers of layers or null")
    if type(config.get("use_rslora", False)) is not bool and config["use_rslora"] is not None:
        raise ValueError(f"{path}: use_rslora is {config['use_rslora']!r}; expected true or false")


def _pattern(config: Mapping[str, Any], name: str, kind: type, path: Path) -> dict[str, Any]:
    """Return `rank_pattern` or `alpha_pattern`: numbers by regular expressions."""
    pattern = config.get(name) or {}
    if not isinstance(pattern, dict) or not all(is_positive(value, kind) for value in pattern.values()):
        raise ValueError(
            f"{path}: {name} is {pattern!r}; expected an object from names of modules to positive {kind.__name__}s"
        )
    for expression in pattern:
        _check_expression(expression, name, path)
    return pattern


def _check_expression(expression: str, name: str, path: Path) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"{path}: {name} has {expression!r}, which is no regular expression ({error})") from error


def _first_match(expressions: Iterable[str], module: str) -> str:
    """Return the first expression that matches the end of a name, from a dot on; the name itself if none does."""
    return next((each for each in expressions if re.match(rf"(.*\.)?({each})$", module)), module)
