"""RLDS data sets as TFDS writes them (`modified_libero_rlds`): one tf.train.Example per episode in TFRecord shards.

Step features are flattened over time. Pictures are JPEG and already rotated by 180 degrees. Source of the layout:
moojink/rlds_dataset_builder. TensorFlow is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_rl.demos.checks import check_episode, missing_key
from vla_rl.demos.conventions import instruction_of_task, task_of_file
from vla_rl.demos.data_errors import AGAIN, DemosError
from vla_rl.demos.episode import ACTION_DIM, CAMERAS, STATE_DIM, Rows, StoredEpisode
from vla_rl.demos.pictures import PictureError, decode_picture, size_of_picture
from vla_rl.demos.protobuf import Feature, ProtobufError, parse_example
from vla_rl.demos.tfrecord import RecordRef, read_record, scan_records
from vla_rl.types import UInt8Array

PICTURES = {"agentview": "steps/observation/image", "wrist": "steps/observation/wrist_image"}
ACTION, STATE = "steps/action", "steps/observation/state"
JOINTS, TEXT = "steps/observation/joint_state", "steps/language_instruction"
ORIGIN = "episode_metadata/file_path"
SHARD = re.compile(r"-(?P<index>\d{5})-of-(?P<count>\d{5})$")


class RldsReader:
    """Reader of the shards of a data set in their order."""

    format = "rlds"
    rotated = True
    documented_gripper: str | None = "signed"

    def __init__(self, files: list[Path]) -> None:
        """Find every record by its header.

        Raises:
            DemosError: shards are missing, damaged or truncated, or their number of records is wrong.
        """
        self.paths = files
        _check_complete(files)
        shards = [list(scan_records(file)) for file in files]
        _check_counts(files, [len(shard) for shard in shards])
        self._records = [record for shard in shards for record in shard]
        if not self._records:
            raise DemosError(files[0].parent, "", "holds no episodes", found=f"{len(files)} empty files", fix=AGAIN)

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[StoredEpisode]:
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int) -> StoredEpisode:
        """Read the numbers of an episode; its checksum is verified."""
        record = self._records[index]
        features = _features(record)
        place = _place(record)
        pictures = {camera: _pictures(features, key, place) for camera, key in PICTURES.items()}
        rows = len(pictures["agentview"])
        if len(pictures["wrist"]) != rows:
            raise DemosError(
                place[0],
                f"{place[1]}/{PICTURES['wrist']}",
                "both cameras have one number of pictures",
                found={camera: len(of_camera) for camera, of_camera in pictures.items()},
            )
        actions = _table(features, ACTION, rows, ACTION_DIM, place)
        state = _table(features, STATE, rows, STATE_DIM, place)
        check_episode(actions, state, rows, place)
        instruction = _instruction(features, place)
        return StoredEpisode(
            place=place,
            task=_task(features, instruction),
            number=index,
            instruction=instruction,
            actions=actions.astype(np.float64),
            state=state,
            image_size=_size(pictures, place),
            lag=0,
            read_pictures=partial(_read_pictures, record),
            read_extras=partial(_read_extras, record, rows),
        )


def _place(record: RecordRef) -> tuple[str, str]:
    return str(record.file), f"record at byte {record.offset}"


def _check_complete(files: list[Path]) -> None:
    named = [match for file in files if (match := SHARD.search(file.name))]
    if not named:
        return
    sets = {(file.name[: match.start()], match["count"]) for file in files if (match := SHARD.search(file.name))}
    if len(sets) > 1 or len(named) < len(files):
        raise DemosError(
            files[0].parent,
            "",
            "a folder holds the shards of one data set",
            found=", ".join(sorted({file.name for file in files}))[:300],
            fix="move the files of the others away, or those that an earlier build left",
        )
    count = int(named[0]["count"])
    missing = sorted(set(range(count)) - {int(match["index"]) for match in named})
    if missing:
        raise DemosError(
            files[0].parent,
            "",
            f"a data set of {count} shards needs all of them",
            found=f"{len(named)}; shard {missing[0]:05d} is the first that is missing",
            fix=f"name the folder, {files[0].parent}" if len(files) == 1 and count > 1 else "fetch the missing files",
        )


def _check_counts(files: list[Path], counts: list[int]) -> None:
    """Compare the number of records of each shard with dataset_info.json, if it exists."""
    path = files[0].parent / "dataset_info.json"
    if not path.exists():
        return
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        expected = next(list(map(int, it["shardLengths"])) for it in splits if it.get("name", "train") == "train")
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return  # it is optional, and other versions of TFDS write it differently
    if expected != counts and len(expected) == len(counts):
        shard = next(place for place, both in enumerate(zip(expected, counts, strict=True)) if both[0] != both[1])
        raise DemosError(
            files[shard],
            "",
            "must hold as many episodes as dataset_info.json says",
            found=f"{counts[shard]}, and {expected[shard]} there",
            fix=AGAIN,
        )


def _features(record: RecordRef) -> dict[str, Feature]:
    try:
        return parse_example(read_record(record))
    except ProtobufError as error:
        raise DemosError(*_place(record), "is no tf.train.Example", found=str(error), fix=AGAIN) from error


def _feature(features: Mapping[str, Feature], key: str, place: tuple[str, str]) -> Feature:
    if key not in features:
        raise missing_key(place, key, list(features))
    return features[key]


def _pictures(features: Mapping[str, Feature], key: str, place: tuple[str, str]) -> list[memoryview]:
    feature = _feature(features, key, place)
    if not isinstance(feature, list):
        raise DemosError(place[0], f"{place[1]}/{key}", "wrong type", found="numbers", allowed="JPEG or PNG pictures")
    return feature


def _table(
    features: Mapping[str, Feature], key: str, rows: int, width: int, place: tuple[str, str]
) -> NDArray[np.float32]:
    feature = _feature(features, key, place)
    if isinstance(feature, list) or feature.size != rows * width:
        found = f"{len(feature)} {'byte strings' if isinstance(feature, list) else 'numbers'} for {rows} pictures"
        raise DemosError(
            place[0], f"{place[1]}/{key}", "wrong shape", found=found, allowed=f"{width} numbers for each picture"
        )
    return feature.reshape(rows, width).astype(np.float32)


def _instruction(features: Mapping[str, Feature], place: tuple[str, str]) -> str:
    texts = {bytes(text) for text in _pictures(features, TEXT, place)}
    if len(texts) != 1:
        raise DemosError(
            place[0], f"{place[1]}/{TEXT}", "one text for the whole episode", found=f"{len(texts)} different ones"
        )
    return texts.pop().decode(errors="replace").strip().lower()


def _task(features: Mapping[str, Feature], instruction: str) -> str:
    """Return the name of the episode's original file, which also identifies the scene."""
    origin = features.get(ORIGIN)
    if isinstance(origin, list) and origin:
        name = bytes(origin[0]).decode(errors="replace").replace("\\", "/").rsplit("/", 1)[-1]
        task = task_of_file(Path(name))
        if name.endswith((".hdf5", ".h5")) and instruction_of_task(task) == instruction:
            return task
    return instruction.replace(" ", "_")


def _size(pictures: Mapping[str, list[memoryview]], place: tuple[str, str]) -> tuple[int, int]:
    sizes = {}
    for camera, of_camera in pictures.items():
        for row, data in enumerate(of_camera):
            try:
                sizes[size_of_picture(data)] = (camera, row)
            except PictureError as error:
                raise _unreadable(place, camera, row, error) from error
    if len(sizes) != 1:
        raise DemosError(*place, "all pictures have one size", found=", ".join(f"{h}x{w}" for h, w in sizes))
    return next(iter(sizes))


def _unreadable(place: tuple[str, str], camera: str, row: int, error: PictureError) -> DemosError:
    key = f"{place[1]}/{PICTURES[camera]}, row {row}"
    return DemosError(place[0], key, "cannot be read as a picture", found=str(error), fix=AGAIN)


def _read_pictures(record: RecordRef, camera: str, rows: Rows) -> UInt8Array:
    place = _place(record)
    encoded = _pictures(_features(record), PICTURES[camera], place)
    decoded = []
    for row in rows.tolist():
        try:
            decoded.append(decode_picture(encoded[row]))
        except PictureError as error:
            raise _unreadable(place, camera, row, error) from error
    return np.stack(decoded)


def _read_extras(record: RecordRef, rows: int) -> Mapping[str, NDArray[Any]]:
    joints = _features(record).get(JOINTS)
    if joints is None or isinstance(joints, list) or joints.size != 7 * rows:
        return {}
    return {"obs/joint_states": joints.reshape(rows, 7).astype(np.float64)}


assert set(PICTURES) == set(CAMERAS)
