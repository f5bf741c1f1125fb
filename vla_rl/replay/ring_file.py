"""Replay ring as a safetensors file, so that a resumed run starts with its experience.

The file holds the committed episodes that are present, in the order of their commits: one tensor per row field with
the rows of all episodes one after another (an episode of L decisions has L + 1), and one entry per episode in `env`,
`task_index`, `group`, `member`, `success`, `length` and `intact`. Env workers continue while it is written; an episode
that they overwrite before its rows are in the file gets `intact` = False and is not loaded. The metadata name the tasks
that `task_index` counts: a run with other tasks, or in another order, loads the episodes of those that it has. Rows are
streamed: no second copy of the ring is made. A file that is older than a column loads too: without `group` and
`success` its episodes have no groups, without `member` the members of a group are all numbered 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vla_rl.ipc.shared_arrays import Field
from vla_rl.replay.layout import RingLayout
from vla_rl.replay.ring import EpisodeWriter, ReplayRing

REPLAY, RING_FILE = "replay", "ring.safetensors"  # folder of one rank in a training's checkpoint, and the file in it
_DTYPE_NAMES = {"uint8": "U8", "int16": "I16", "int64": "I64", "float32": "F32", "bool": "BOOL"}
_EPISODE_COLUMNS = ("env", "task_index", "group", "member", "success", "length")


@dataclass(frozen=True, slots=True)
class LoadedRing:
    """Experience that was loaded from a file."""

    decisions: int
    left_out: int  # decisions of tasks that the run does not have


def save_ring(ring: ReplayRing, path: Path, *, tasks: Sequence[str]) -> int:
    """Write the episodes of a ring to `path`. The caller is responsible for atomicity.

    Args:
        ring: the ring.
        path: file to write.
        tasks: what identifies each task of the run, in the order that `task_index` counts.

    Returns:
        The number of decisions that can be loaded again.
    """
    episodes = ring.present_episodes()
    positions = [
        ring.positions(episode["env"], episode["first_row"] + np.arange(episode["length"] + 1)) for episode in episodes
    ]
    num_rows = sum(len(rows) for rows in positions)
    fields = [
        *(Field(field.name, (num_rows, *field.shape[1:]), field.dtype) for field in ring.layout.row_fields()),
        *(Field(name, (len(episodes),), np.int64) for name in _EPISODE_COLUMNS),
        Field("intact", (len(episodes),), np.bool_),
    ]
    with path.open("wb") as file:
        metadata = {"layout": json.dumps(_layout_facts(ring.layout)), "num_envs": str(ring.layout.num_envs)}
        _write_header(file, fields, metadata | {"tasks": json.dumps(list(tasks))})
        for field in ring.layout.row_fields():
            rows_of_field = ring.row_array(field.name)
            for rows in positions:
                file.write(rows_of_field[rows].tobytes())
        for name in _EPISODE_COLUMNS:
            file.write(np.ascontiguousarray(episodes[name]).tobytes())
        is_intact = ring.intact(episodes["env"], episodes["first_row"])
        file.write(is_intact.tobytes())
    return int(episodes["length"][is_intact].sum())


def load_ring(ring: ReplayRing, path: Path, *, tasks: Sequence[str]) -> LoadedRing:
    """Commit the episodes of a file to a ring. Call it before env workers write.

    Every env gets its own episodes back; if the number of envs has changed, all are spread evenly. The number of rows
    may differ too: the oldest episodes are then dropped.

    Args:
        ring: the ring, without episodes.
        path: file to read.
        tasks: as of `save_ring`, of this run. A file that is older than this is taken to have the same.

    Raises:
        ValueError: not a file of a ring, or made for other observations, actions or longer episodes.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            _check_layout(path, file.metadata() or {}, ring.layout)
            return _load_episodes(ring, file, path, tasks)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file of a replay ring: {error}") from error


def _load_episodes(
    ring: ReplayRing,
    file: Any,  # noqa: ANN401 - safetensors is untyped
    path: Path,
    tasks: Sequence[str],
) -> LoadedRing:
    lengths, is_intact = file.get_tensor("length"), file.get_tensor("intact")
    longest = int(lengths[is_intact].max(initial=0))
    if longest > ring.layout.max_episode_decisions:
        raise ValueError(
            f"{path} holds an episode of {longest} decisions, but this run's episodes have at most "
            f"{ring.layout.max_episode_decisions} (env.horizon): resume with the horizon of the saved run, or without "
            f"its replay (checkpoint.save_replay=false)"
        )
    envs, task_indices = file.get_tensor("env"), file.get_tensor("task_index")
    saved_tasks = json.loads(file.metadata().get("tasks", json.dumps(list(tasks))))
    now = {index: tasks.index(task) for index, task in enumerate(saved_tasks) if task in tasks}
    is_left_out = is_intact & ~np.isin(task_indices, list(now))
    later = {name: np.zeros_like(envs) for name in ("group", "member", "success")}  # older files lack them
    later |= {name: file.get_tensor(name) for name in later if name in file.keys()}  # noqa: SIM118 - not a mapping
    same_envs = int(file.metadata()["num_envs"]) == ring.layout.num_envs
    first_rows = np.cumsum(lengths + 1) - (lengths + 1)
    slices = {field.name: file.get_slice(field.name) for field in ring.layout.row_fields()}
    writers = [ring.writer(env) for env in range(ring.layout.num_envs)]
    rows_written = np.zeros(len(writers), np.int64)
    for index in np.flatnonzero(is_intact & ~is_left_out):
        env = int(envs[index]) if same_envs else int(rows_written.argmin())
        start, stop = int(first_rows[index]), int(first_rows[index] + lengths[index] + 1)
        rows = {name: saved[start:stop] for name, saved in slices.items()}
        writers[env].begin(
            now[int(task_indices[index])], group=int(later["group"][index]), member=int(later["member"][index])
        )
        _write_episode(writers[env], rows, success=bool(later["success"][index]))
        rows_written[env] += stop - start
    left_out = int(lengths[is_left_out].sum())
    return LoadedRing(int(lengths[is_intact].sum()) - left_out, left_out)


def _write_episode(writer: EpisodeWriter, rows: dict[str, NDArray[Any]], *, success: bool) -> None:
    """Write the begun episode's rows, and commit it."""
    for index in range(len(rows["value"]) - 1):
        writer.add(**{name: row[index] for name, row in rows.items()})
    writer.commit(rows["frames"][-1], rows["state"][-1], success=success)


def _layout_facts(layout: RingLayout) -> dict[str, int | bool]:
    """Return the properties in which the saved ring and the one being loaded must agree."""
    return {**asdict(layout.observation_spec), **asdict(layout.action_spec), "store_logits": layout.store_logits}


def _check_layout(path: Path, metadata: dict[str, str], layout: RingLayout) -> None:
    if not {"layout", "num_envs"} <= metadata.keys():
        raise ValueError(f"{path} is not a replay ring: its metadata must have 'layout' and 'num_envs'")
    saved, expected = json.loads(metadata["layout"]), _layout_facts(layout)
    differing = [
        f"{key} is {saved.get(key)}, not {value}" for key, value in expected.items() if saved.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"{path} was saved by a run with another policy or loss: {'; '.join(differing)}. Resume with the recipe of "
            f"the saved run, or without its replay (checkpoint.save_replay=false)"
        )


def _write_header(file: BinaryIO, fields: Sequence[Field], metadata: dict[str, str]) -> None:
    """Write the header of a safetensors file: length, then JSON with names, dtypes, shapes and offsets."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for field in fields:
        nbytes = prod(field.shape) * np.dtype(field.dtype).itemsize
        header[field.name] = {
            "dtype": _DTYPE_NAMES[np.dtype(field.dtype).name],
            "shape": list(field.shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
