"""Small files of an export, and the directory that appears complete or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from vla_rl.files import atomic_write_json, folder_written_aside
from vla_rl.policies.openvla_oft.checkpoint_files import RECORD_FILE
from vla_rl.policies.openvla_oft.config import config_to_json
from vla_rl.policies.openvla_oft.dataset_statistics import libero_statistics
from vla_rl.policies.openvla_oft.json_files import read_json
from vla_rl.policies.openvla_oft.profiles import PROFILES
from vla_rl.policies.openvla_oft.public_files import write_processor_files
from vla_rl.policies.openvla_oft.source import Source

_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".bin", ".index.json")
_STATISTICS_FILE = "dataset_statistics.json"
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@contextmanager
def appears_whole(directory: Path) -> Iterator[Path]:
    """Yield a directory to write into, beside `directory`: renamed to it at the end, removed on any error.

    Raises:
        ValueError: `directory` exists, or cannot be made.
        OSError: a file could not be written, also where safetensors has an error of its own for it.
    """
    try:
        with folder_written_aside(directory) as aside:
            yield aside
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # as Rust writes errors of the system
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error


def write_metadata(source: Source, directory: Path, *, dtype: torch.dtype) -> None:
    """Copy the files beside the source's weights (tokenizer, statistics, code); generate them for random weights."""
    if source.files is None:
        _write_new_metadata(source, directory)
    else:
        for path in source.files.directory.iterdir():
            if path.is_file() and not path.name.endswith(_WEIGHT_SUFFIXES):
                shutil.copyfile(path, directory / path.name)
        write_statistics(source, directory)
    write_record(source, directory)
    path = directory / "config.json"
    config = read_json(path)
    key = "dtype" if "dtype" in config and "torch_dtype" not in config else "torch_dtype"  # newer or older transformers
    if config.get(key) != _DTYPE_NAMES[dtype]:
        atomic_write_json(path, {**config, key: _DTYPE_NAMES[dtype]})


def write_statistics(source: Source, directory: Path) -> None:
    """Write the statistics of the demonstrations, or copy those of the folder that the source was loaded from."""
    if source.measured is not None:
        atomic_write_json(directory / _STATISTICS_FILE, dict(source.measured))
    elif source.files is not None and (source.files.home / _STATISTICS_FILE).is_file():
        shutil.copyfile(source.files.home / _STATISTICS_FILE, directory / _STATISTICS_FILE)


def write_record(source: Source, directory: Path) -> None:
    """Record what no file of the public layout says, for `profile="auto"` to find."""
    usual, used = PROFILES[source.profile.name].num_images, source.profile.num_images
    cameras = {} if used == usual else {"num_images": used}
    atomic_write_json(directory / RECORD_FILE, {"profile": source.profile.name, **cameras})


def _write_new_metadata(source: Source, directory: Path) -> None:
    from vla_rl.policies.openvla_oft.tiny_tokenizer import tiny_tokenizer_json

    (directory / "tokenizer.json").write_text(tiny_tokenizer_json(), encoding="utf-8")
    known = libero_statistics() if source.measured is None else source.measured
    statistics = {key: block for key, block in known.items() if not key.startswith("_")}
    atomic_write_json(directory / _STATISTICS_FILE, statistics)
    atomic_write_json(directory / "config.json", {**config_to_json(source.config), "norm_stats": statistics})
    write_processor_files(directory, source.config, source.pixels)
