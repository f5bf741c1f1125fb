"""Toy demonstrations, and small writers of every format that know nothing of the readers.

A toy episode is told by what a policy should see: upright pictures, aligned with actions in the environment's units.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
TASKS = ("KITCHEN_SCENE3_Turn_on_the_stove", "pick_up_the_red_bowl")
PROMPTS = {TASKS[0]: "turn on the stove", TASKS[1]: "pick up the red bowl"}


@dataclass
class Toy:
    task: str
    number: int
    actions: np.ndarray  # (T, 7) float32, gripper -1 open, +1 close
    state: np.ndarray  # (T, 8) float32
    frames: dict[str, np.ndarray] = field(default_factory=dict)  # camera to (T, SIZE, SIZE, 3) uint8, upright

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def prompt(self) -> str:
        return PROMPTS[self.task]


def picture(seed: int) -> np.ndarray:
    """Four blocks of flat colours, which JPEG keeps within a few grey levels; no symmetry."""
    colours = np.random.default_rng(seed).integers(30, 220, size=(2, 2, 1))
    blocks = np.repeat(np.repeat(colours, SIZE // 2, axis=0), SIZE // 2, axis=1)
    return np.broadcast_to(blocks, (SIZE, SIZE, 3)).astype(np.uint8)


def toy(task: str, number: int, length: int) -> Toy:
    seed = 1000 * TASKS.index(task) + 100 * number
    numbers = np.random.default_rng(seed)
    actions = numbers.uniform(-0.9, 0.9, size=(length, 7)).astype(np.float32)
    actions[:, 6] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
    state = numbers.normal(size=(length, 8)).astype(np.float32)
    frames = {
        camera: np.stack([picture(seed + row + offset) for row in range(length)])
        for camera, offset in (("agentview", 0), ("wrist", 50))
    }
    return Toy(task, number, actions, state, frames)


def toys() -> list[Toy]:
    """Two tasks, three demonstrations each; `demo_10` sorts before `demo_2` by its letters."""
    return [
        toy(task, number, length) for task in TASKS for number, length in ((0, 12), (2, 9), (10, 14))
    ]  # in the order of files and numbers: "K" comes before "p"


# HDF5


def write_hdf5(folder: Path, episodes: Sequence[Toy], *, raw: bool = False, attributes: bool = True) -> Path:
    """Regenerated files, or raw ones, in which a picture shows what the action of its row did.

    A raw episode gets one action in front, of which no policy sees the picture before it.
    """
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    for task in dict.fromkeys(one.task for one in episodes):
        with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
            data = file.create_group("data")
            if raw and attributes:
                data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": 20}})
                data.attrs["problem_info"] = json.dumps({"language_instruction": "another sentence"})
                data.attrs["num_demos"] = 3
            for one in (it for it in episodes if it.task == task):
                demo = data.create_group(f"demo_{one.number}")
                if raw and attributes:
                    demo.attrs["num_samples"] = len(one) + 1
                    demo.attrs["model_file"] = "<mujoco/>"
                actions = one.actions.astype(np.float64)
                state = one.state.astype(np.float64)
                frames = {camera: one.frames[camera][:, ::-1, ::-1] for camera in one.frames}
                if raw:
                    first = np.array([[0.5, 0, 0, 0, 0, 0, -1.0]])
                    actions = np.concatenate([first, actions])
                    # Row j holds what is seen after action j; the last action's picture is used by nobody.
                    state = np.concatenate([state, state[-1:] + 1])
                    frames = {camera: np.concatenate([it, 255 - it[-1:]]) for camera, it in frames.items()}
                demo["actions"] = actions
                demo["obs/ee_states"] = state[:, :6]
                demo["obs/ee_pos"], demo["obs/ee_ori"] = state[:, :3], state[:, 3:6]
                demo["obs/gripper_states"] = state[:, 6:]
                demo["obs/joint_states"] = np.zeros((len(actions), 7))
                demo["states"] = np.zeros((len(actions), 30))
                demo["robot_states"] = np.zeros((len(actions), 9))
                demo["rewards"] = demo["dones"] = np.eye(len(actions), dtype=np.uint8)[-1]
                demo["obs/agentview_rgb"], demo["obs/eye_in_hand_rgb"] = frames["agentview"], frames["wrist"]
    return folder


# RLDS: TFRecord and protobuf by hand


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, as the polynomial is defined."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def table_crc32c(data: bytes, _table: list[int] = []) -> int:  # noqa: B006 - made once
    if not _table:
        _table += [slow_crc32c_step(byte) for byte in range(256)]
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def slow_crc32c_step(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
    return byte


def masked(data: bytes) -> int:
    crc = table_crc32c(data)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def varint(number: int) -> bytes:
    number %= 1 << 64
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def delimited(field_number: int, body: bytes) -> bytes:
    return varint(field_number << 3 | 2) + varint(len(body)) + body


def bytes_feature(values: Sequence[bytes]) -> bytes:
    return delimited(1, b"".join(delimited(1, value) for value in values))


def float_feature(values: np.ndarray, *, packed: bool = True) -> bytes:
    flat = np.asarray(values, "<f4").ravel()
    if packed:
        return delimited(2, delimited(1, flat.tobytes()))
    return delimited(2, b"".join(varint(1 << 3 | 5) + one.tobytes() for one in flat))


def int_feature(values: Sequence[int], *, packed: bool = True) -> bytes:
    if packed:
        return delimited(3, delimited(1, b"".join(map(varint, values))))
    return delimited(3, b"".join(varint(1 << 3) + varint(value) for value in values))


def example(features: dict[str, bytes]) -> bytes:
    entries = (delimited(1, delimited(1, key.encode()) + delimited(2, value)) for key, value in features.items())
    return delimited(1, b"".join(entries))


def encoded(frame: np.ndarray, form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, form, **({"quality": 95} if form == "JPEG" else {}))
    return stream.getvalue()


def rlds_features(one: Toy, *, packed: bool = True) -> dict[str, bytes]:
    rows = len(one)
    ends = [int(row == rows - 1) for row in range(rows)]
    return {
        "steps/is_last": int_feature(ends, packed=packed),
        "steps/action": float_feature(one.actions, packed=packed),
        "steps/observation/state": float_feature(one.state, packed=packed),
        "steps/observation/joint_state": float_feature(np.zeros((rows, 7)), packed=packed),
        "steps/observation/image": bytes_feature([encoded(it, "JPEG") for it in one.frames["agentview"]]),
        "steps/observation/wrist_image": bytes_feature([encoded(it, "JPEG") for it in one.frames["wrist"]]),
        "steps/language_instruction": bytes_feature([one.prompt.encode()] * rows),
        "steps/reward": float_feature(np.array(ends)),
        "episode_metadata/file_path": bytes_feature([f"/data/libero/{one.task}_demo.hdf5".encode()]),
    }


def write_rlds(folder: Path, episodes: Sequence[Toy], *, shards: int = 2) -> Path:
    version = folder / "1.0.0"
    version.mkdir(parents=True)
    parts = np.array_split(np.arange(len(episodes)), shards)
    for shard, part in enumerate(parts):
        content = b"".join(record(example(rlds_features(episodes[i], packed=shard % 2 == 0))) for i in part)
        (version / f"libero_toy-train.tfrecord-{shard:05d}-of-{shards:05d}").write_bytes(content)
    splits = [{"name": "train", "shardLengths": [str(len(part)) for part in parts]}]
    (version / "dataset_info.json").write_text(json.dumps({"name": "libero_toy", "splits": splits}), encoding="utf-8")
    return folder


# LeRobot


def lerobot_info(version: str, episodes: Sequence[Toy], kind: str, keys: dict[str, str], fps: int) -> dict:
    picture = {"dtype": kind, "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
    v3 = version == "v3.0"
    return {
        "codebase_version": version,
        "fps": fps,
        "chunks_size": 1000,
        "total_episodes": len(episodes),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if v3
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4" if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            keys["agentview"]: picture,
            keys["wrist"]: picture,
            keys["state"]: {"dtype": "float32", "shape": [8]},
            keys["action"]: {"dtype": "float32", "shape": [7]},
        },
    }  # fmt: skip


LEROBOT_KEYS = {
    "agentview": "observation.images.image", "wrist": "observation.images.image2",
    "state": "observation.state", "action": "action",
}  # fmt: skip
OPENPI_KEYS = {"agentview": "image", "wrist": "wrist_image", "state": "state", "action": "actions"}
IPEC_KEYS = {**LEROBOT_KEYS, "wrist": "observation.images.wrist_image"}


def lerobot_table(episodes: Sequence[Toy], first: int, start: int, kind: str, keys: dict[str, str], binary: bool):
    import pyarrow as pa

    tasks = list(dict.fromkeys(one.prompt for one in toys()))
    columns: dict[str, list] = {name: [] for name in ("episode_index", "frame_index", "index", "task_index")}
    columns |= {keys[name]: [] for name in (("agentview", "wrist") if kind == "image" else ()) + ("state", "action")}
    for offset, one in enumerate(episodes):
        actions = one.actions.copy()
        if binary:
            actions[:, 6] = (1 - actions[:, 6]) / 2
        for row in range(len(one)):
            columns["episode_index"].append(first + offset)
            columns["frame_index"].append(row)
            columns["index"].append(start + len(columns["index"]))
            columns["task_index"].append(tasks.index(one.prompt))
            columns[keys["state"]].append(one.state[row].tolist())
            columns[keys["action"]].append(actions[row].tolist())
            for camera in ("agentview", "wrist") if kind == "image" else ():
                columns[keys[camera]].append({"bytes": encoded(one.frames[camera][row], "PNG"), "path": None})
    floats = pa.list_(pa.float32())
    types = {keys["state"]: pa.list_(pa.float32(), 8), keys["action"]: floats}
    return pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})


def write_video(file: Path, frames: np.ndarray, fps: int, codec: str = "libx264") -> None:
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "8", "g": "5"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def write_lerobot_v2(
    root: Path, episodes: Sequence[Toy], *, kind: str = "image", keys: dict[str, str] = IPEC_KEYS,
    binary: bool = True, fps: int = 20, version: str = "v2.1",
) -> Path:  # fmt: skip
    import pyarrow.parquet as pq

    (root / "meta").mkdir(parents=True)
    (root / "data" / "chunk-000").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(lerobot_info(version, episodes, kind, keys, fps)))
    tasks = list(dict.fromkeys(one.prompt for one in toys()))
    lines = [json.dumps({"task_index": i, "task": task.capitalize()}) for i, task in enumerate(tasks)]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"episode_index": i, "tasks": [it.prompt], "length": len(it)}) for i, it in enumerate(episodes)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    start = 0
    for index, one in enumerate(episodes):
        table = lerobot_table([one], index, start, kind, keys, binary)
        pq.write_table(table, root / "data" / "chunk-000" / f"episode_{index:06d}.parquet")
        start += len(one)
        if kind == "video":
            for camera in ("agentview", "wrist"):
                file = root / "videos" / "chunk-000" / keys[camera] / f"episode_{index:06d}.mp4"
                write_video(file, one.frames[camera], fps)
    return root


def write_lerobot_v3(
    root: Path, episodes: Sequence[Toy], *, kind: str = "image", keys: dict[str, str] = LEROBOT_KEYS,
    binary: bool = False, fps: int = 10, named_index: bool = True, row_group_size: int = 10,
) -> Path:  # fmt: skip
    """The first two episodes in one file, the rest in a second; row groups that do not care for episodes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(lerobot_info("v3.0", episodes, kind, keys, fps)))
    tasks = list(dict.fromkeys(one.prompt for one in toys()))
    text = "task" if named_index else "__index_level_0__"
    pq.write_table(pa.table({"task_index": list(range(len(tasks))), text: tasks}), root / "meta" / "tasks.parquet")
    lines, start, index = [], 0, 0
    for number, part in enumerate((episodes[:2], episodes[2:])):
        table = lerobot_table(part, index, start, kind, keys, binary)
        pq.write_table(table, root / f"data/chunk-000/file-{number:03d}.parquet", row_group_size=row_group_size)
        frames = 0
        for one in part:
            line = {
                "episode_index": index, "tasks": [one.prompt], "length": len(one), "data/chunk_index": 0,
                "data/file_index": number, "dataset_from_index": start, "dataset_to_index": start + len(one),
            }  # fmt: skip
            for camera in ("agentview", "wrist") if kind == "video" else ():
                name = f"videos/{keys[camera]}"
                line |= {f"{name}/chunk_index": 0, f"{name}/file_index": number}
                line |= {f"{name}/from_timestamp": frames / fps, f"{name}/to_timestamp": (frames + len(one)) / fps}
            lines.append(line)
            start, index, frames = start + len(one), index + 1, frames + len(one)
        for camera in ("agentview", "wrist") if kind == "video" else ():
            file = root / "videos" / keys[camera] / "chunk-000" / f"file-{number:03d}.mp4"
            write_video(file, np.concatenate([one.frames[camera] for one in part]), fps)
    pq.write_table(pa.Table.from_pylist(lines), root / "meta/episodes/chunk-000/file-000.parquet")
    return root
