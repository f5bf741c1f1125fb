"""Read the weights of a local OpenVLA-OFT checkpoint: shard by shard, into a network built on the meta device."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_rl.policies.openvla_oft.adapters import Adapter, read_adapter
from vla_rl.policies.openvla_oft.config import OFTConfig
from vla_rl.policies.openvla_oft.files import CheckpointFiles, unused_shapes
from vla_rl.policies.openvla_oft.model import OpenVLAOFT
from vla_rl.policies.openvla_oft.profiles import Profile
from vla_rl.policies.parameters import META, cast_parameters, move_buffers, set_parameter

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COMPONENTS = ("action_head", "proprio_projector")
_MAPPED_BYTES = 64 << 20  # of a shard, before it is mapped anew
_SHOWN_NAMES = 6  # of a long list in an error message


def empty_model(config: OFTConfig, profile: Profile, *, proprio: bool, l1_head: bool, dtype: torch.dtype) -> OpenVLAOFT:
    """The frozen network with its parameters on the meta device."""
    with META:
        model = OpenVLAOFT(config, profile, proprio=proprio, l1_head=l1_head)
    cast_parameters(model, dtype)
    return model.requires_grad_(False)


def fill_model(model: OpenVLAOFT, files: CheckpointFiles, *, device: torch.device) -> None:
    """Give every parameter of `model` its stored tensor, cast to the parameter's dtype.

    Raises:
        ValueError: a tensor is missing, unknown or misshapen; the message names it.
    """
    parameters = dict(model.named_parameters())
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    known = {**unused_shapes(model.config), **expected}
    adapter = _merged(files)
    unmatched = sorted(adapter.names - set(known)) if adapter is not None else []
    if adapter is not None and unmatched:
        raise ValueError(f"{adapter.folder}: adapts what is not there: {_shorten(unmatched)}")
    missing = dict.fromkeys(expected)
    for name, stored in _stored_tensors(files, [name for name in COMPONENTS if getattr(model, name) is not None]):
        _check_tensor(name, stored, known, files.directory)
        if name in expected:
            tensor = stored if adapter is None else adapter.apply(name, stored)
            set_parameter(model, name, tensor.to(device=device, dtype=parameters[name].dtype))
            missing.pop(name, None)
    if missing:
        raise ValueError(f"{files.directory}: {len(missing)} tensors are missing: {_shorten(list(missing))}")
    move_buffers(model, device)


def unused_tensors(files: CheckpointFiles, config: OFTConfig) -> dict[str, Tensor]:
    """The stored tensors that the network does not hold, as far as a checkpoint has them; an export passes them on."""
    shapes, adapter = unused_shapes(config), _merged(files)
    found = {name: tensor for shard in files.shards for name, tensor in _read_shard(shard, only=shapes)}
    return found if adapter is None else {name: adapter.apply(name, tensor) for name, tensor in found.items()}


def _merged(files: CheckpointFiles) -> Adapter | None:
    return None if files.adapter is None else read_adapter(files.adapter)


def _stored_tensors(files: CheckpointFiles, components: list[str]) -> Iterator[tuple[str, Tensor]]:
    for shard in files.shards:
        yield from _read_shard(shard, only=None)
    for component in components:
        path: Path | None = getattr(files, component)
        assert path is not None, "a network has a component where its source has the file"
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
    if not zipfile.is_zipfile(path):  # torch would take it for a pickle, and fail somewhere in it
        raise ValueError(f"{path}: cannot be read as a plain state dict (no file of torch.save); copy it again")
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
