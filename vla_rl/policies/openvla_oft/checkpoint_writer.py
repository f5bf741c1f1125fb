"""Writer of policies for other programs: a checkpoint in the public layout, or a LoRA adapter in peft's.

In a checkpoint, adapters are added (in float32) to the weights that they adapt, and the trained action rows replace
rows 31744..31999 of lm_head; tensors that the network does not need are copied from the source, or are zeros where it
lacks them, so that the folder has every published name. An adapter folder holds what differs from its base. Both get
two files that the public layout lacks: the critic, `value_head.safetensors`, and the profile, `vla_rl.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vla_rl.files import atomic_write_json
from vla_rl.policies.action_tokens import FIRST_ACTION_ID, NUM_BINS
from vla_rl.policies.lora import (
    ADAPTER,
    checkpoint_name,
    is_adapter,
    merged_weight,
)
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.adapter_config import write_adapter_config
from vla_rl.policies.openvla_oft.adapters import PREFIX, WEIGHTS_FILE, read_adapter
from vla_rl.policies.openvla_oft.checkpoint_files import COMPONENTS, VALUE_HEAD_FILE, CheckpointFiles, unused_shapes
from vla_rl.policies.openvla_oft.checkpoint_metadata import write_metadata, write_record, write_statistics
from vla_rl.policies.openvla_oft.checkpoint_reader import unused_tensors
from vla_rl.policies.openvla_oft.hub import is_hub_id
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.policy import LM_HEAD, OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.shards import INDEX_FILE, SINGLE_FILE
from vla_rl.policies.openvla_oft.source import Source

MAX_SHARD_BYTES = 5_000_000_000
PROJECTOR_PREFIX = "proprio_projector."
_IN_OTHER_FILES = (PROJECTOR_PREFIX, "action_head.")


def write_checkpoint(
    policy: OpenVLAOFTPolicy,
    directory: Path,
    *,
    step: int,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Write a checkpoint in the public layout. Only one shard at a time is in memory.

    Args:
        policy: policy with its weights loaded.
        directory: empty.
        step: number in the names of component files.
        dtype: dtype of the shards; default: that of the network, float32 where the backbone was trained.
        max_shard_bytes: size above which the weights are split.

    Returns:
        Names of tensors that the source lacks and the network does not need: they are written as zeros.
    """
    lora = policy.section.lora
    tensors = _CheckpointTensors(policy.model, policy.source, dtype, lora=lora, action_rows=policy.action_rows)
    _write_shards(tensors, directory, max_shard_bytes)
    _write_components(policy, directory, step=step)
    write_metadata(policy.source, directory, dtype=tensors.dtype)
    return tensors.lacking


def write_network(model: OFTNetwork, source: Source, directory: Path, *, dtype: torch.dtype | None = None) -> list[str]:
    """Write a network as its source has it into an empty directory, components unchanged unless adapted.

    Args:
        model: with its weights in place.
        source: origin of the weights; an adapter is merged into the written shards.
        directory: gets all files of the public layout, and the critic where the source has one.
        dtype: dtype of the shards; default: that of `model`.

    Returns:
        As `write_checkpoint`.
    """
    tensors = _CheckpointTensors(model, source, dtype)
    _write_shards(tensors, directory, MAX_SHARD_BYTES)
    if source.files is None:
        _write_projector(model, directory, step=0)
    else:
        _copy_components(model, source.files, directory)
    write_metadata(source, directory, dtype=tensors.dtype)
    return tensors.lacking


def write_adapter(policy: OpenVLAOFTPolicy, directory: Path, *, step: int, dtype: torch.dtype | None = None) -> None:
    """Write what differs from the base into an empty directory. peft and `OpenVLAOFT.from_pretrained` can load it.

    Args:
        policy: with adapters, on a checkpoint directory or a hub id, which the adapter names as its base.
        directory: gets adapter_config.json, adapter_model.safetensors (with the whole lm_head, if its action rows were
            trained), the projector of proprioception, the statistics and the critic.
        step: number in the names of component files.
        dtype: dtype of the tensors; default: float32, and the base's for lm_head.

    Raises:
        ValueError: the policy has no adapters, or its base is not a folder that an adapter could name.
    """
    files = policy.source.files
    if policy.section.lora is None:
        raise ValueError("this policy was trained without adapters (policy.lora is null): export it merged")
    if files is None or files.adapter is not None:
        raise ValueError(
            f"an adapter names the folder of its base, and the base {policy.source.origin!r} is "
            f"{'made from a seed' if files is None else 'itself an adapter'}: export it merged"
        )
    tensors = {
        PREFIX + name.replace(f".{ADAPTER}.", "."): parameter.detach().to("cpu", dtype or torch.float32)
        for name, parameter in policy.model.named_parameters()
        if is_adapter(name)
    }
    if policy.action_rows is not None:
        head = policy.model.language_model.lm_head.weight
        tensors[PREFIX + LM_HEAD] = _with_action_rows(head.detach().to("cpu", dtype or head.dtype), policy.action_rows)
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    whole = ["lm_head"] if policy.action_rows is not None else None
    named = policy.section.checkpoint
    base = named if is_hub_id(named) else str(files.directory.resolve())  # a path means nothing on other machines
    write_adapter_config(policy.section.lora, directory, base=base, whole_modules=whole)
    _write_components(policy, directory, step=step)
    write_statistics(policy.source, directory)
    write_record(policy.source, directory)


class _CheckpointTensors:
    """Tensors of the shards, each made on request."""

    def __init__(
        self,
        model: OFTNetwork,
        source: Source,
        dtype: torch.dtype | None,
        *,
        lora: LoraSection | None = None,
        action_rows: Tensor | None = None,
    ) -> None:
        self.dtype = dtype or model.dtype
        self._lora, self._action_rows = lora, action_rows
        self._parameters = dict(model.named_parameters())
        self._unused, self.lacking = _unused(model, source)
        kept = [name for name in self._parameters if not is_adapter(name) and not name.startswith(_IN_OTHER_FILES)]
        self._sources = {checkpoint_name(name): name for name in kept}
        counts = {name: self._parameters[source].numel() for name, source in self._sources.items()}
        counts |= {name: tensor.numel() for name, tensor in self._unused.items()}
        self.sizes = {name: count * self.dtype.itemsize for name, count in counts.items()}  # bytes

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        if name in self._unused:
            return self._unused[name].to(self.dtype).contiguous()
        merged = self._merged(self._sources[name]).to("cpu", self.dtype)
        if name == LM_HEAD and self._action_rows is not None:
            return _with_action_rows(merged, self._action_rows)
        return merged.contiguous()

    def _merged(self, source: str) -> Tensor:
        weight = self._parameters[source].detach()
        layer, found, leaf = source.partition(".base_layer.")
        if not found or leaf != "weight":
            return weight
        assert self._lora is not None
        lora_a, lora_b = (self._parameters[f"{layer}.{part}.{ADAPTER}.weight"] for part in ("lora_A", "lora_B"))
        return merged_weight(weight.float(), lora_a, lora_b, scaling=self._lora.alpha / self._lora.rank)


def _with_action_rows(head: Tensor, rows: Tensor) -> Tensor:
    """Return a copy of lm_head with the trained rows in it."""
    merged = head.clone()
    merged[FIRST_ACTION_ID : FIRST_ACTION_ID + NUM_BINS] = rows.detach().to(merged)
    return merged


def _unused(model: OFTNetwork, source: Source) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors that the network does not need, and the names of those that the source's files lack."""
    stored = {} if source.files is None else unused_tensors(source.files, model.config)
    shapes = unused_shapes(model.config)
    zeros = {name: torch.zeros(shape, dtype=model.dtype) for name, shape in shapes.items() if name not in stored}
    return stored | zeros, [] if source.files is None else list(zeros)


def _copy_components(model: OFTNetwork, files: CheckpointFiles, directory: Path) -> None:
    """Copy the components' files; adapted components are written from the network, where they are merged."""
    adapted = set() if files.adapter is None else read_adapter(files.adapter).names
    for component in COMPONENTS:
        path: Path | None = getattr(files, component)
        if path is not None and any(name.startswith(f"{component}.") for name in adapted):
            tensors = getattr(model, component).state_dict()
            torch.save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, directory / path.name)
        elif path is not None:
            shutil.copyfile(path, directory / path.name)
    if files.value_head is not None:
        shutil.copyfile(files.value_head, directory / files.value_head.name)


def _write_projector(model: OFTNetwork, directory: Path, *, step: int) -> None:
    projector = {
        name.removeprefix(PROJECTOR_PREFIX): tensor.detach().cpu()
        for name, tensor in model.named_parameters()
        if name.startswith(PROJECTOR_PREFIX)
    }
    if projector:
        torch.save(projector, directory / f"proprio_projector--{step}_checkpoint.pt")


def _write_components(policy: OpenVLAOFTPolicy, directory: Path, *, step: int) -> None:
    _write_projector(policy.model, directory, step=step)
    critic = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.value_head.named_parameters()}
    if critic:
        save_file(critic, directory / VALUE_HEAD_FILE, metadata={"value_head": policy.section.value_head})


def _write_shards(tensors: _CheckpointTensors, directory: Path, max_shard_bytes: int) -> None:
    shards = _split(tensors.sizes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensors.sizes.values())
        atomic_write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(sizes: dict[str, int], max_shard_bytes: int) -> list[list[str]]:
    def shards() -> Iterator[list[str]]:
        names: list[str] = []
        size = 0
        for name, bytes_needed in sizes.items():
            if names and size + bytes_needed > max_shard_bytes:
                yield names
                names, size = [], 0
            names.append(name)
            size += bytes_needed
        yield names

    return list(shards())
