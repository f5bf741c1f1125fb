"""Metadata of a LeRobot data set: which columns hold what, and where each episode lies.

v2.0 and v2.1 list episodes and tasks in lines of JSON and have a file for each episode; v3.0 lists them in parquet, and
its files hold several episodes. Source: huggingface/lerobot, src/lerobot/datasets.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_rl.demos.data_errors import AGAIN, DemosError
from vla_rl.demos.episode import ACTION_DIM, CAMERAS
from vla_rl.demos.parquet import column_names, num_rows, read_columns

INFO = Path("meta", "info.json")
CAMERA_KEYS = {
    "agentview": ("observation.images.image", "observation.images.agentview_rgb", "observation.image", "image"),
    "wrist": (
        *("observation.images.image2", "observation.images.wrist_image", "observation.images.eye_in_hand_rgb"),
        *("observation.wrist_image", "wrist_image"),
    ),
}
ACTION_KEYS = ("action", "actions")
STATE_KEYS = (("observation.state",), ("state",), ("observation.states.ee_state", "observation.states.gripper_state"))
POSITIVE = ("fps", "chunks_size")
JOINT_KEYS = ("observation.states.joint_state",)


@dataclass(frozen=True, slots=True)
class Placement:
    """Place of an episode: rows of a parquet file, and seconds in a video per camera."""

    episode: int
    file: Path
    start: int
    stop: int
    videos: Mapping[str, tuple[Path, float]]  # camera to file and begin in seconds


@dataclass(frozen=True, slots=True)
class Features:
    """Columns of each quantity, found by their names."""

    cameras: Mapping[str, str]
    is_video: Mapping[str, bool]
    action: str
    state: tuple[str, ...]
    joints: str | None


class LeRobotMetadata:
    """Contents of the files below meta/, in one form for all versions."""

    def __init__(self, root: Path) -> None:
        """Read them, and check that they fit the files of data.

        Raises:
            DemosError: the metadata is missing, broken, of an unknown version, or names other features.
        """
        self._root = root
        self._info_file = root / INFO
        info = _read_json(self._info_file)
        version = str(info.get("codebase_version", ""))
        if version not in ("v2.0", "v2.1", "v3.0"):
            raise DemosError(
                self._info_file,
                "codebase_version",
                "unknown version",
                found=repr(version),
                allowed="v2.0, v2.1, v3.0",
                fix="convert the data set with LeRobot's own scripts",
            )
        self.format = f"lerobot_{version}"
        self.fps = self._number(info, "fps")
        self._info = info
        self.features = _find_features(self._info_file, info.get("features"))
        is_v3 = version == "v3.0"
        self.placements = self._places_v3() if is_v3 else self._places_v2()
        if not self.placements:
            raise DemosError(root, "meta", "holds no episodes")
        self._check_all_listed(info.get("total_episodes"))
        self._check_files_listed()
        self.tasks = self._tasks_v3() if is_v3 else self._tasks_v2()

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of the pictures of both cameras.

        Raises:
            DemosError: the cameras differ, or a shape is none of a picture.
        """
        sizes = {}
        for camera, key in self.features.cameras.items():
            feature = self._info["features"][key]
            shape = feature.get("shape")
            if not isinstance(shape, list) or len(shape) != 3 or not all(isinstance(side, int) for side in shape):
                raise DemosError(
                    self._info_file, f"features.{key}.shape", "wrong shape", found=shape, allowed="H, W, 3 or 3, H, W"
                )
            names = feature.get("names")
            first = str(names[0]) if isinstance(names, list) and names else ""
            is_planes = first.startswith("channel") if first else shape[0] == 3 and shape[2] != 3
            sizes[camera] = (shape[1], shape[2]) if is_planes else (shape[0], shape[1])
        if len(set(sizes.values())) != 1:
            raise DemosError(self._info_file, "features", "both cameras have one size", found=sizes)
        return sizes["agentview"]

    def _places_v2(self) -> list[Placement]:
        file = self._root / "meta" / "episodes.jsonl"
        chunks_size = int(self._number(self._info, "chunks_size"))
        places = []
        for line in _read_lines(file):
            episode, length = int(self._number(line, "episode_index", file)), int(self._number(line, "length", file))
            named = {"episode_chunk": episode // chunks_size, "episode_index": episode}
            places.append(
                Placement(
                    episode,
                    self._path("data_path", **named),
                    0,
                    length,
                    {
                        camera: (self._path("video_path", video_key=key, **named), 0.0)
                        for camera, key in self.features.cameras.items()
                        if self.features.is_video[camera]
                    },
                )
            )
        places.sort(key=lambda it: it.episode)
        for place in places:
            if not place.file.is_file():
                raise DemosError(place.file, "", "is missing", fix="fetch the whole data set")
        _check_rows_listed(places, file.relative_to(self._root))
        return places

    def _tasks_v2(self) -> dict[int, str]:
        file = self._root / "meta" / "tasks.jsonl"
        return {int(self._number(line, "task_index", file)): str(line.get("task") or "") for line in _read_lines(file)}

    def _places_v3(self) -> list[Placement]:
        folder = self._root / "meta" / "episodes"
        files = sorted(folder.glob("chunk-*/file-*.parquet"))
        if not files:
            raise DemosError(folder, "", "is missing", allowed="chunk-000/file-000.parquet, ...")
        names = ["episode_index", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"]
        videos = {
            camera: [f"videos/{key}/{what}" for what in ("chunk_index", "file_index", "from_timestamp")]
            for camera, key in self.features.cameras.items()
            if self.features.is_video[camera]
        }
        wanted = [*names, *(name for of_camera in videos.values() for name in of_camera)]
        lines: list[dict[str, Any]] = []
        for file in files:
            columns = read_columns(file, wanted)
            for name, values in columns.items():
                if not all(isinstance(value, int | float) for value in values):
                    raise DemosError(file, name, "must hold numbers", found=f"{values[:5]}", fix=AGAIN)
            lines += [dict(zip(wanted, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        lines.sort(key=lambda line: int(line["episode_index"]))
        begins: dict[tuple[int, int], int] = {}  # global index of the first row of each file
        for line in lines:
            data = (line["data/chunk_index"], line["data/file_index"])
            begins[data] = min(begins.get(data, line["dataset_from_index"]), line["dataset_from_index"])
        places = []
        for line in lines:
            chunk, number = line["data/chunk_index"], line["data/file_index"]
            begin = begins[chunk, number]
            places.append(
                Placement(
                    int(line["episode_index"]),
                    self._path("data_path", chunk_index=chunk, file_index=number),
                    int(line["dataset_from_index"]) - begin,
                    int(line["dataset_to_index"]) - begin,
                    {
                        camera: (
                            self._path(
                                "video_path",
                                video_key=self.features.cameras[camera],
                                chunk_index=line[of_camera[0]],
                                file_index=line[of_camera[1]],
                            ),
                            float(line[of_camera[2]]),
                        )
                        for camera, of_camera in videos.items()
                    },
                )
            )
        _check_rows_listed(places, folder.relative_to(self._root))
        return places

    def _tasks_v3(self) -> dict[int, str]:
        file = self._root / "meta" / "tasks.parquet"
        names = column_names(file)
        text = next((name for name in ("task", "__index_level_0__") if name in names), "task")
        columns = read_columns(file, ["task_index", text])
        if None in columns["task_index"]:
            raise DemosError(file, "task_index", "must hold numbers", found="an empty cell", fix=AGAIN)
        return {int(key): str(task or "") for key, task in zip(columns["task_index"], columns[text], strict=True)}

    def _check_all_listed(self, total: object) -> None:
        """Check that the metadata list as many episodes as info.json promises."""
        if isinstance(total, int) and total > len(self.placements):
            raise DemosError(
                self._info_file,
                "total_episodes",
                "the metadata must list all episodes",
                found=f"{total}, but meta/ lists {len(self.placements)}",
                fix="a file of meta/ is missing or cut off: fetch the data set again",
            )

    def _check_files_listed(self) -> None:
        """Check that the metadata list episodes of every file: none is lost without a word."""
        folder = self._root / Path(str(self._info.get("data_path"))).parts[0]
        listed = {place.file for place in self.placements}
        for file in sorted(folder.rglob("*.parquet")):
            if file not in listed and not file.name.startswith("."):  # macOS writes a `._NAME` beside each NAME
                raise DemosError(
                    file,
                    "",
                    "is of no listed episode",
                    allowed="files of the episodes that meta/ lists",
                    fix="the metadata do not fit the data: fetch the data set again, or remove the file",
                )

    def _path(self, template: str, **values: object) -> Path:
        text = self._info.get(template)
        try:
            return self._root / str(text).format(**values) if text else self._refuse(template, text)
        except (KeyError, IndexError, ValueError) as error:
            return self._refuse(template, text, error)

    def _refuse(self, template: str, text: object, error: Exception | None = None) -> Path:
        raise DemosError(self._info_file, template, "is no template of a path", found=repr(text)) from error

    def _number(self, holder: Mapping[str, Any], key: str, file: Path | None = None) -> float:
        value = holder.get(key)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or value < 0
            or (key in POSITIVE and not value)
        ):
            raise DemosError(file or self._info_file, key, "must be a number", found=repr(value))
        return float(value)


def _find_features(file: Path, features: object) -> Features:
    if not isinstance(features, dict) or not all(isinstance(it, dict) for it in features.values()):
        raise DemosError(
            file, "features", "must describe the columns", allowed="an object with dtype and shape for each column"
        )
    names = set(features)
    cameras = {camera: next((key for key in keys if key in names), None) for camera, keys in CAMERA_KEYS.items()}
    action = next((key for key in ACTION_KEYS if key in names), None)
    state = next((keys for keys in STATE_KEYS if names.issuperset(keys)), None)
    for what, found, allowed in (
        *((camera, cameras[camera], CAMERA_KEYS[camera]) for camera in CAMERAS),
        ("action", action, ACTION_KEYS),
        ("state", state, tuple(" with ".join(keys) for keys in STATE_KEYS)),
    ):
        if found is None:
            raise DemosError(
                file, "features", f"no column for {what}", found=", ".join(sorted(names)), allowed=", ".join(allowed)
            )
    assert action is not None
    assert state is not None
    known = {camera: key for camera, key in cameras.items() if key is not None}
    kinds = {camera: str(features[key].get("dtype")) for camera, key in known.items()}
    for camera, kind in kinds.items():
        if kind not in ("image", "video"):
            raise DemosError(
                file, f"features.{known[camera]}.dtype", "unknown kind of picture", found=kind, allowed="image, video"
            )
    width = features[action].get("shape")
    if width not in (None, [ACTION_DIM]):
        raise DemosError(file, f"features.{action}.shape", "wrong shape", found=width, allowed=f"[{ACTION_DIM}]")
    return Features(
        cameras=known,
        is_video={camera: kind == "video" for camera, kind in kinds.items()},
        action=action,
        state=state,
        joints=next((key for key in JOINT_KEYS if key in names), None),
    )


def _check_rows_listed(places: Sequence[Placement], listing: Path) -> None:
    """Check that every file has the rows that the metadata list, and no others: none is lost without a word."""
    listed: dict[Path, list[Placement]] = {}
    for place in places:
        listed.setdefault(place.file, []).append(place)
    for file, inside in sorted(listed.items()):
        rows, stop = num_rows(file), max(place.stop for place in inside)
        if rows < stop:
            raise DemosError(file, "", "has too few rows", found=rows, allowed=f"{stop}, as {listing} says")
        if (total := sum(place.stop - place.start for place in inside)) != rows:
            raise DemosError(
                file,
                "",
                "has rows of no listed episode",
                found=f"{rows} rows",
                allowed=f"{total}, as {listing} says",
                fix="the metadata do not fit the data: fetch the data set again",
            )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DemosError(file, "", "cannot be read as JSON", found=str(error), fix="fetch the file again") from error
    if not isinstance(value, dict):
        raise DemosError(file, "", "must be a JSON object", found=type(value).__name__)
    return value


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DemosError(file, "", "cannot be read as lines of JSON", found=str(error)) from error
    yield from (line if isinstance(line, dict) else {} for line in lines)
