"""Write a trained policy as a checkpoint in the public layout, adapters merged, for any OpenVLA-OFT program to load.

Adapters are added to the weights they adapt and the trained action rows replace rows 31744..31999 of lm_head; tensors
that the network never needed are taken from the source checkpoint, so that the folder has every published name. The
critic is not part of a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_rl.policies.action_tokens import FIRST_ACTION_ID, NUM_BINS
from vla_rl.policies.lora import ADAPTER, LoraSettings, checkpoint_name, is_adapter, merged_weight
from vla_rl.policies.openvla_oft.checkpoint import unused_tensors
from vla_rl.policies.openvla_oft.config import config_to_json
from vla_rl.policies.openvla_oft.files import INDEX_FILE, SINGLE_FILE, unused_shapes
from vla_rl.policies.openvla_oft.pixels import PixelNormalization
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy

MAX_SHARD_BYTES = 5_000_000_000
PROJECTOR_PREFIX = "proprio_projector."
LM_HEAD = "language_model.lm_head.weight"
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".bin", ".index.json")


def export_checkpoint(
    policy: OpenVLAOFTPolicy, directory: Path, *, step: int, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write `policy` to a new directory; it appears complete or not at all.

    Args:
        policy: with its weights in place.
        directory: must not exist.
        step: number in the names of component files.
        max_shard_bytes: size above which the weights are split.

    Raises:
        ValueError: `directory` exists.
    """
    if directory.exists():
        raise ValueError(f"{directory} exists; name a new directory for the exported checkpoint")
    partial = directory.with_name(directory.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    tensors = merged_tensors(policy)
    projector = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PROJECTOR_PREFIX)}
    if projector:
        state = {name.removeprefix(PROJECTOR_PREFIX): tensor for name, tensor in projector.items()}
        torch.save(state, partial / f"proprio_projector--{step}_checkpoint.pt")
    _write_shards(tensors, partial, max_shard_bytes)
    _write_metadata(policy, partial)
    partial.rename(directory)


@torch.no_grad()
def merged_tensors(policy: OpenVLAOFTPolicy) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its published name, on the CPU; merged ones keep the dtype of the weights."""
    parameters = dict(policy.model.named_parameters())
    merged = {
        checkpoint_name(name): _merge(name, parameters, policy.lora) for name in parameters if not is_adapter(name)
    }
    if policy.action_rows is not None:
        lm_head = merged[LM_HEAD].clone()
        lm_head[FIRST_ACTION_ID : FIRST_ACTION_ID + NUM_BINS] = policy.action_rows.to(lm_head)
        merged[LM_HEAD] = lm_head
    return merged | _unused(policy)


def _merge(name: str, parameters: dict[str, torch.nn.Parameter], lora: LoraSettings | None) -> Tensor:
    weight = parameters[name].detach()
    layer, found, leaf = name.partition(".base_layer.")
    if not found or leaf != "weight":
        return weight.cpu()
    assert lora is not None
    lora_a, lora_b = (parameters[f"{layer}.{part}.{ADAPTER}.weight"] for part in ("lora_A", "lora_B"))
    return merged_weight(weight, lora_a, lora_b, scaling=lora.alpha / lora.rank).cpu()


def _unused(policy: OpenVLAOFTPolicy) -> dict[str, Tensor]:
    if policy.source.files is not None:
        return unused_tensors(policy.source.files, policy.model.config)
    shapes = unused_shapes(policy.model.config)
    return {name: torch.zeros(shape, dtype=policy.model.dtype) for name, shape in shapes.items()}


def _write_shards(tensors: dict[str, Tensor], directory: Path, max_shard_bytes: int) -> None:
    shards = list(_split(tensors, max_shard_bytes))
    metadata = {"format": "pt"}
    if len(shards) == 1:
        save_file(shards[0], directory / SINGLE_FILE, metadata=metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata=metadata)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(tensors: dict[str, Tensor], max_shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        bytes_needed = tensor.numel() * tensor.element_size()
        if shard and size + bytes_needed > max_shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += bytes_needed
    yield shard


def _write_metadata(policy: OpenVLAOFTPolicy, directory: Path) -> None:
    """Copy what lies beside the source's weights; write it anew for the tiny model."""
    source = policy.source
    if source.files is not None:
        for path in source.files.directory.iterdir():
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(path, directory / path.name)
        return
    from vla_rl.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer_json

    (directory / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    statistics = {key: block for key, block in source.statistics.items() if not key.startswith("_")}
    _write_json(directory / "dataset_statistics.json", statistics)
    _write_json(directory / "config.json", config_to_json(source.config))
    _write_json(directory / "preprocessor_config.json", _preprocessor_json(source.pixels))


def _preprocessor_json(pixels: PixelNormalization) -> dict[str, Any]:
    blocks = [{"mean": list(mean), "std": list(std)} for mean, std in zip(pixels.mean, pixels.std, strict=True)]
    return {"tvf_normalize_params": blocks}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
