"""LoRA adapters in a folder of peft's layout: which base they belong to, and merging them while it is loaded.

Public checkpoints hold such a folder (`lora_adapter/`) beside shards that it is merged into already: it is not read
there. A folder that holds an adapter and no shards stands for its base with the adapter merged in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_rl.policies.lora import merged_weight
from vla_rl.policies.openvla_oft.hub import checkpoint_directory
from vla_rl.policies.openvla_oft.json_files import is_positive, read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

# What peft may do beyond W + alpha / rank · B A; none of it is done here.
_REFUSED = ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication")


@dataclass(frozen=True, slots=True)
class Adapter:
    """The tensors of an adapter, by the names of the checkpoint's tensors."""

    folder: Path
    scaling: float
    factors: Mapping[str, tuple[Tensor, Tensor]]  # A and B of every adapted weight
    replaced: Mapping[str, Tensor]  # tensors that it holds whole

    @property
    def names(self) -> set[str]:
        """Every tensor that differs from the base's."""
        return {*self.factors, *self.replaced}

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the base with the adapter in it: float32 where something was added.

        Raises:
            ValueError: the adapter was made for another shape.
        """
        weight = self.replaced.get(name, weight)
        if name not in self.factors:
            return weight
        lora_a, lora_b = (factor.flatten(1) for factor in self.factors[name])
        matrix = weight.flatten(1).float()  # patch embeddings are convolutions
        adapted = (lora_b.shape[0], lora_a.shape[1])
        if adapted != tuple(matrix.shape):
            raise ValueError(f"{self.folder}: adapts a {name} of shape {adapted}, the base's is {tuple(matrix.shape)}")
        return merged_weight(matrix, lora_a, lora_b, scaling=self.scaling).reshape(weight.shape)


def base_directory(folder: Path) -> Path:
    """The checkpoint that an adapter folder belongs to: a directory, seen from here or from the folder, or a hub id.

    Raises:
        ValueError: `base_model_name_or_path` is empty, or names nothing that is here.
    """
    path = folder / CONFIG_FILE
    base = read_json(path).get("base_model_name_or_path") or ""
    if not isinstance(base, str):
        raise ValueError(f"{path}: base_model_name_or_path is {base!r}; expected a directory's or a model's name")
    found = [place for place in (Path(base), folder / base) if base and place.is_dir()]
    if not base or found == [folder]:
        raise ValueError(
            f"{path}: base_model_name_or_path is empty, so nothing says which weights it adapts; write the base "
            "checkpoint's directory there, or load the base with adapter= this folder"
        )
    return found[0] if found else checkpoint_directory(base, download=False)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter.

    Raises:
        ValueError: not LoRA as this program knows it, a file broken, or a tensor of unknown kind.
    """
    rank, scaling = _rank_and_scaling(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: {WEIGHTS_FILE} is missing beside {CONFIG_FILE}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    factors, replaced = _sorted_by_kind(tensors, path)
    for name, (lora_a, lora_b) in factors.items():
        if lora_a.dim() < 2 or lora_b.dim() < 2 or not lora_a.shape[0] == lora_b.shape[1] == rank:
            raise ValueError(
                f"{path}: the factors of {name} have the shapes {tuple(lora_a.shape)} and {tuple(lora_b.shape)}; r is "
                f"{rank} in {CONFIG_FILE}, so expected are ({rank}, ...) and (..., {rank})"
            )
    return Adapter(folder, scaling, factors, replaced)


def _rank_and_scaling(path: Path) -> tuple[int, float]:
    """What adapter_config.json says: the width of the factors, and how much of their product is added."""
    config = read_json(path)
    unknown = [name for name in _REFUSED if config.get(name)]
    if config.get("peft_type") != "LORA" or unknown or config.get("bias", "none") != "none":
        raise ValueError(
            f"{path}: expected peft_type LORA without biases, found {config.get('peft_type')!r}, bias "
            f"{config.get('bias')!r}{''.join(f', {name} {config[name]!r}' for name in unknown)}"
        )
    for name, kind in (("r", int), ("lora_alpha", float)):
        if not is_positive(config.get(name), kind):
            raise ValueError(f"{path}: {name} is {config.get(name)!r}; expected a positive {kind.__name__}")
    return config["r"], config["lora_alpha"] / config["r"]


def _sorted_by_kind(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    factors, replaced = {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name == key:
            raise ValueError(f"{path}: holds {key!r}; names of an adapter begin with {PREFIX!r}")
        one, other = (".lora_B.", ".lora_A.") if ".lora_B." in name else (".lora_A.", ".lora_B.")
        if one not in name:
            replaced[name.replace(".base_layer.", ".")] = tensor
            continue
        partner = key.replace(one, other)
        if partner not in tensors:
            raise ValueError(f"{path}: {partner} is missing")
        if one == ".lora_A.":
            factors[f"{name.partition(one)[0]}.weight"] = (tensor, tensors[partner])
    return factors, replaced
