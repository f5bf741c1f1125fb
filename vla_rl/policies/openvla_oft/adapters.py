"""LoRA adapters in a folder of peft's layout: finding their base, and merging them while it is loaded.

Public checkpoints hold such a folder (`lora_adapter/`) beside shards into which it is already merged: it is not read
there. A folder with an adapter and no shards stands for its base with the adapter merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vla_rl.policies.lora import merged_weight
from vla_rl.policies.openvla_oft.adapter_config import BASE_FIELD, CONFIG_FILE, AdapterConfig, read_adapter_config
from vla_rl.policies.openvla_oft.hub import checkpoint_directory
from vla_rl.policies.openvla_oft.json_files import read_json

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
_NETWORK_CONFIG = "config.json"
_WEIGHT = ".weight"
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Adapter:
    """Tensors of an adapter, by the names of the checkpoint's tensors."""

    folder: Path
    config: AdapterConfig
    factors: Mapping[str, tuple[Tensor, Tensor]]  # A and B of every adapted weight
    replaced: Mapping[str, Tensor]  # tensors stored whole

    @property
    def names(self) -> set[str]:
        """Return the names of all tensors that differ from the base's."""
        return {*self.factors, *self.replaced}

    def apply(self, name: str, weight: Tensor) -> Tensor:
        """Return a tensor of the base with the adapter merged: float32 where something was added.

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
        scaling = self.config.scaling_of(name.removesuffix(_WEIGHT))
        return merged_weight(matrix, lora_a, lora_b, scaling=scaling).reshape(weight.shape)


def base_directory(folder: Path) -> Path:
    """Find the base checkpoint of an adapter folder: a directory relative to here or to the folder, or a hub id.

    Raises:
        ValueError: `base_model_name_or_path` is empty, names nothing that exists here, or the adapter itself, or is
            ambiguous.
    """
    path = folder / CONFIG_FILE
    base = read_json(path).get(BASE_FIELD) or ""
    if not isinstance(base, str):
        raise ValueError(f"{path}: base_model_name_or_path is {base!r}; expected a directory's or a model's name")
    places = [place for place in (Path(base), folder / base) if base and place.is_dir()]
    # A relative path may name two directories: if both are checkpoints, it is ambiguous.
    found = {place.resolve(): place for place in places if (place / _NETWORK_CONFIG).is_file()}
    if len(found) > 1:
        raise ValueError(
            f"{path}: base_model_name_or_path {base!r} names two checkpoints, {' and '.join(map(str, found))}; write "
            "the whole path of the right one there"
        )
    names_itself = bool(places) and all(place.samefile(folder) for place in places)
    if not base or (names_itself and not found):
        what = f"is {base!r}, the adapter's own folder" if base else "is empty"
        raise ValueError(
            f"{path}: {BASE_FIELD} {what}, so nothing says which weights it adapts; write the base checkpoint's "
            f'directory or its name on the hub there, like "{BASE_FIELD}": "path/to/openvla-7b"'
        )
    return next(iter([*found.values(), *places]), None) or checkpoint_directory(base, download=False)


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter.

    Raises:
        ValueError: an unsupported kind of LoRA, a broken file, or a tensor of unknown kind.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder}: {WEIGHTS_FILE} is missing beside {CONFIG_FILE}")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    modules = [key.removeprefix(PREFIX).removesuffix(_A) for key in tensors if key.endswith(_A)]
    config = read_adapter_config(folder / CONFIG_FILE, modules)
    factors, replaced = _sorted_by_kind(tensors, path)
    for name, (lora_a, lora_b) in factors.items():
        rank = config.rank_of(name.removesuffix(_WEIGHT))
        if lora_a.dim() < 2 or lora_b.dim() < 2 or not lora_a.shape[0] == lora_b.shape[1] == rank:
            raise ValueError(
                f"{path}: the factors of {name} have the shapes {tuple(lora_a.shape)} and {tuple(lora_b.shape)}; r is "
                f"{rank} in {CONFIG_FILE}, so expected are ({rank}, ...) and (..., {rank})"
            )
    return Adapter(folder, config, factors, replaced)


def _sorted_by_kind(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    factors, replaced = {}, {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if name == key:
            raise ValueError(f"{path}: holds {key!r}; names of an adapter begin with {PREFIX!r}")
        if name.endswith((_A, _B)):
            one, other = (_A, _B) if name.endswith(_A) else (_B, _A)
            partner = key.removesuffix(one) + other
            if partner not in tensors:
                raise ValueError(f"{path}: {partner} is missing")
            if one == _A:
                factors[name.removesuffix(_A) + _WEIGHT] = (tensor, tensors[partner])
        elif ".lora_" in name:
            raise ValueError(
                f"{path}: holds {key!r}, which is neither of the two factors that a linear layer or a convolution is "
                "adapted with; merge the adapter into its base with peft and give the merged checkpoint"
            )
        else:
            replaced[name.replace(".base_layer.", ".")] = tensor
    return factors, replaced
