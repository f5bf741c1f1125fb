"""Read the weights of a local OpenVLA-OFT checkpoint: shard by shard, into a network built on the meta device."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_rl.policies.openvla_oft.adapters import read_adapter
from vla_rl.policies.openvla_oft.config import OFTConfig, read_config
from vla_rl.policies.openvla_oft.files import CheckpointFiles, find_files, unused_shapes
from vla_rl.policies.openvla_oft.model import OpenVLAOFT
from vla_rl.policies.openvla_oft.profiles import Profile, resolve_profile
from vla_rl.policies.parameters import META, cast_parameters, move_buffers, set_parameter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPONENTS = ("action_head", "proprio_projector")
_MAPPED_BYTES = 64 << 20  # of a shard, before it is mapped anew
_SHOWN_NAMES = 6  # of a long list in an error message


def load_model(
    directory: Path, *, adapter: Path | None, profile: str, dtype: torch.dtype | None, device: torch.device
) -> OpenVLAOFT:
    """See `OpenVLAOFT.from_pretrained`."""
    files = find_files(directory, adapter=adapter)
    config = read_config(files.directory)
    l1_head = files.action_head is not None
    model = empty_model(
        config,
        resolve_profile(profile, has_l1_head=l1_head),
        proprio=files.proprio_projector is not None,
        l1_head=l1_head,
        dtype=dtype or stored_dtype(config, files.directory),
    )
    fill_model(model, files, device=device)
    return model.eval()


def empty_model(config: OFTConfig, profile: Profile, *, proprio: bool, l1_head: bool, dtype: torch.dtype) -> OpenVLAOFT:
    """The frozen network with its parameters on the meta device."""
    with META:
        model = OpenVLAOFT(config, profile, proprio=proprio, l1_head=l1_head)
    cast_parameters(model, dtype)
    return model.requires_grad_(False)


def stored_dtype(config: OFTConfig, directory: Path) -> torch.dtype:
    """The dtype that `config.json` names."""
    if config.dtype not in DTYPES:
        raise ValueError(f"{directory}/config.json: torch_dtype is {config.dtype!r}, expected one of {sorted(DTYPES)}")
    return DTYPES[config.dtype]


def fill_model(model: OpenVLAOFT, files: CheckpointFiles, *, device: torch.device) -> None:
    """Give every parameter of `model` its stored tensor, cast to the parameter's dtype.

    Raises:
        ValueError: a tensor is missing, unknown or misshapen; the message names it.
    """
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    known = {**unused_shapes(model.config), **expected}
    adapter = None if files.adapter is None else read_adapter(files.adapter)
    if adapter is not None and adapter.names - set(known):
        raise ValueError(f"{adapter.folder}: adapts what is not there: {_shorten(sorted(adapter.names - set(known)))}")
    seen: set[str] = set()
    for name, stored in _stored_tensors(files):
        _check_tensor(name, stored, known, files.directory)
        if name in expected:
            tensor = stored if adapter is None else adapter.apply(name, stored)
            set_parameter(model, name, tensor.to(device=device, dtype=dtypes[name]))
        seen.add(name)
    missing = [name for name in expected if name not in seen]
    if missing:
        raise ValueError(f"{files.directory}: {len(missing)} tensors are missing: {_shorten(missing)}")
    move_buffers(model, device)


def unused_tensors(files: CheckpointFiles, config: OFTConfig) -> dict[str, Tensor]:
    """The stored tensors that the network does not hold, as they are; an export needs them to be complete."""
    names = unused_shapes(config)
    return {name: tensor for shard in files.shards for name, tensor in _read_shard(shard, only=names)}


def _stored_tensors(files: CheckpointFiles) -> Iterator[tuple[str, Tensor]]:
    for shard in files.shards:
        yield from _read_shard(shard, only=None)
    for component in COMPONENTS:
        path: Path | None = getattr(files, component)
        if path is not None:
            yield from ((f"{component}.{name}", tensor) for name, tensor in _read_component(path).items())


def _read_shard(path: Path, *, only: Mapping[str, object] | None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a shard, or of it only those names. They are views of the mapped file."""
    try:
        with safe_open(path, framework="pt", device="cpu") as shard:
            names = [name for name in shard.keys() if only is None or name in only]  # noqa: SIM118 - not a mapping
        while names:
            # Pages that were read count as this process's memory while the mapping is open. A new one every now and
            # then lets go of those that were cast into tensors of their own.
            read = 0
            with safe_open(path, framework="pt", device="cpu") as shard:
                while names and read < _MAPPED_BYTES:
                    tensor = shard.get_tensor(names[0])
                    read += tensor.nbytes
                    yield names.pop(0), tensor
    except SafetensorError as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error}); copy it again") from error


def _read_component(path: Path) -> dict[str, Tensor]:
    """A plain state dict, read without executing what a pickle may hold; a leading `module.` (DDP) is dropped."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as a plain state dict ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a plain state dict of tensors")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _check_tensor(name: str, tensor: Tensor, shapes: Mapping[str, tuple[int, ...]], directory: Path) -> None:
    if name not in shapes:
        raise ValueError(f"{directory}: holds the tensor {name!r}, which OpenVLA-OFT does not have")
    if tuple(tensor.shape) != shapes[name]:
        raise ValueError(f"{directory}: {name} has shape {tuple(tensor.shape)}, config.json implies {shapes[name]}")


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more
