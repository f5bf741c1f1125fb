"""Data that cannot be used: one error that names the file, the key, the rule, what was found and a fix."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import toy_demos as toy
from toy_demos import toys

from vla_rl.demos import CAMERAS, DemosError, open_demos
from vla_rl.errors import UserError

FILE = f"{toy.TASKS[0]}_demo.hdf5"
Damage = Callable[[h5py.File], None]


def use_all(path: Path, **options) -> None:
    for episode in open_demos(path, **options):
        assert episode.frames


def message_of(path: Path, **options) -> str:
    with pytest.raises(DemosError) as raised:
        use_all(path, **options)
    return str(raised.value)


def replaced(key: str, values: object) -> Damage:
    def damage(file: h5py.File) -> None:
        del file[f"data/demo_2/{key}"]
        if values is not None:
            file[f"data/demo_2/{key}"] = values

    return damage


def set_cell(key: str, value: float) -> Damage:
    def damage(file: h5py.File) -> None:
        file[f"data/demo_2/{key}"][4, 3] = value

    return damage


HDF5: dict[str, tuple[Damage, list[str]]] = {
    "no actions": (replaced("actions", None), ["data/demo_2/actions: is missing", "found    dones, obs"]),
    "no camera": (replaced("obs/eye_in_hand_rgb", None), ["data/demo_2/obs/eye_in_hand_rgb: is missing"]),
    "no fingers": (replaced("obs/gripper_states", None), ["data/demo_2/obs/gripper_states: is missing"]),
    "6 numbers": (replaced("actions", np.zeros((9, 6))), ["data/demo_2/actions: wrong shape", "(9, 6)", "(9, 7)"]),
    "a row too few": (replaced("actions", np.zeros((8, 7))), ["data/demo_2/actions", "(8, 7)", "(9, 7)"]),
    "words": (replaced("actions", "nothing"), ["data/demo_2/actions: wrong shape or type"]),
    "pictures of floats": (
        replaced("obs/agentview_rgb", np.zeros((9, 32, 32, 3), np.float32)),
        ["data/demo_2/obs/agentview_rgb: wrong shape or type", "float32", "(T, H, W, 3) uint8"],
    ),
    "two sizes": (
        replaced("obs/eye_in_hand_rgb", np.zeros((9, 16, 16, 3), np.uint8)),
        ["data/demo_2/obs/eye_in_hand_rgb: both cameras have one size"],
    ),
    "NaN": (set_cell("actions", np.nan), ["data/demo_2/actions: must hold finite numbers", "nan in row 4"]),
    "infinity": (set_cell("obs/ee_states", np.inf), ["data/demo_2/state: must hold finite numbers", "inf in row 4"]),
    "nothing in it": (
        lambda file: file.__delitem__("data"), ["data: holds no demonstrations", "found    nothing"],
    ),
    "numbers in place of everything": (
        lambda file: [file.__delitem__("data"), file.__setitem__("data", [1, 2])],
        ["data: must be a group", "found    a data set"],
    ),
    "numbers in place of the first episode": (
        lambda file: [file.__delitem__("data/demo_0"), file.__setitem__("data/demo_0", [1, 2])],
        ["data/demo_0: must be a group", "found    a data set"],
    ),
    "numbers in place of a later episode": (
        lambda file: [file.__delitem__("data/demo_2"), file.__setitem__("data/demo_2", [1, 2])],
        ["data/demo_2: must be a group", "found    a data set"],
    ),
    "an empty episode": (
        lambda file: [
            replaced(key, np.zeros((0, *shape), kind))(file)
            for key, shape, kind in (
                ("actions", (7,), float), ("obs/ee_states", (6,), float), ("obs/gripper_states", (2,), float),
                ("obs/agentview_rgb", (32, 32, 3), np.uint8), ("obs/eye_in_hand_rgb", (32, 32, 3), np.uint8),
            )
        ],
        ["data/demo_2: an episode has at least one row"],
    ),
    "binary among signed": (
        replaced("actions", np.tile([0.1] * 6 + [0.0], (9, 1))),
        ["data/demo_2: the gripper commands are not 'signed'", "found    values from 0 to 0", "--gripper"],
    ),
    "a gripper beyond 1": (
        replaced("actions", np.tile([0.1] * 6 + [5.0], (9, 1))),
        ["data/demo_2: the gripper commands are not 'signed'", "found    values from 5 to 5"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HDF5)
def test_a_broken_hdf5_file_is_told(name: str, tmp_path: Path) -> None:
    damage, expected = HDF5[name]
    root = toy.write_hdf5(tmp_path, toys())
    with h5py.File(root / FILE, "r+") as file:
        damage(file)
    message = message_of(root)
    for text in (str(root / FILE), *expected):
        assert text in message


def test_a_file_that_another_program_has_open_is_not_called_damaged(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys())
    with (root / FILE).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        message = message_of(root)
    assert f"{root / FILE}: cannot be locked" in message
    assert "export HDF5_USE_FILE_LOCKING=FALSE" in message
    assert "fetch" not in message


def test_states_that_are_one_number_tell_no_time(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys())
    with h5py.File(root / FILE, "r+") as file:
        del file["data/demo_0/states"]
        file["data/demo_0/states"] = 1.0
    assert open_demos(root).format == "libero_hdf5_regenerated"


def test_an_hdf5_file_that_is_cut_off_is_told(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys())
    content = (root / FILE).read_bytes()
    (root / FILE).write_bytes(content[: len(content) // 2])
    message = message_of(root)
    assert f"{root / FILE}: cannot be opened as HDF5" in message
    assert "truncated" in message
    assert "fetch it again" in message


@pytest.mark.parametrize(
    ("write", "file"),
    [
        (toy.write_hdf5, FILE),
        (toy.write_rlds, "1.0.0/libero_toy-train.tfrecord-00000-of-00002"),
        (toy.write_lerobot_v3, "data/chunk-000/file-000.parquet"),
        (
            lambda root, them: toy.write_lerobot_v2(root, them, kind="video"),
            "videos/chunk-000/observation.images.image/episode_000000.mp4",
        ),
    ],
)
def test_a_git_lfs_pointer_is_told_for_what_it_is(write, file: str, tmp_path: Path) -> None:
    root = write(tmp_path / "data", toys())
    (root / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    message = message_of(root)
    assert f"{root / file}: " in message
    assert "found    a git-lfs pointer" in message
    assert "git lfs pull" in message


def test_pictures_of_two_sizes_are_not_mixed(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys())
    with h5py.File(root / FILE, "r+") as file:
        for key in ("agentview_rgb", "eye_in_hand_rgb"):
            replaced(f"obs/{key}", np.zeros((9, 16, 16, 3), np.uint8))(file)
    message = message_of(root)
    assert f"{root / FILE}: data/demo_2: all pictures of a data set have one size" in message
    assert "16x16 pixels" in message


def test_raw_and_regenerated_files_are_not_mixed(tmp_path: Path) -> None:
    toy.write_hdf5(tmp_path, toys()[:3], raw=True)
    toy.write_hdf5(tmp_path, toys()[3:])
    message = message_of(tmp_path)
    assert "all files of a dataset have one layout" in message
    assert "regenerated, pictures before their actions" in message


def test_a_pair_of_signed_values_is_no_binary_gripper(tmp_path: Path) -> None:
    root = toy.write_lerobot_v3(tmp_path / "data", toys(), binary=True)
    assert open_demos(root).gripper == "binary"
    message = message_of(root, gripper="signed")
    assert "not 'signed'" in message
    assert "demos.gripper=signed or demos.gripper=binary" in message
    signed = toy.write_lerobot_v3(tmp_path / "signed", toys(), binary=False)
    assert "not 'binary'" in message_of(signed, gripper="binary")


def test_a_gripper_that_nothing_tells_has_to_be_named(tmp_path: Path) -> None:
    episodes = toys()[:3]
    for one in episodes:
        one.actions[:, 6] = 1
    root = toy.write_lerobot_v3(tmp_path / "data", episodes, binary=False)
    message = message_of(root)
    assert "the gripper convention cannot be detected" in message
    assert "--gripper signed or --gripper binary; to sft, demos.gripper=signed or demos.gripper=binary" in message
    assert set(open_demos(root, gripper="signed")[0].actions[:, 6]) == {1}
    assert set(open_demos(root, gripper="binary")[0].actions[:, 6]) == {-1}
    assert set(open_demos(toy.write_hdf5(tmp_path / "hdf5", episodes))[0].actions[:, 6]) == {1}  # the format says it


RLDS = {
    "steps/action": (toy.float_feature(np.zeros(13)), ["steps/action: wrong shape", "13 numbers for 12 pictures"]),
    "steps/observation/state": (None, ["steps/observation/state: is missing"]),
    "steps/observation/wrist_image": (toy.bytes_feature([b"abc"] * 12), ["wrist_image, row 0: cannot be read"]),
    "steps/observation/image": (toy.float_feature(np.ones(3)), ["image: wrong type"]),
    "steps/language_instruction": (toy.bytes_feature([b"a"] * 11 + [b"b"]), ["one text for the whole episode"]),
}


@pytest.mark.parametrize("key", RLDS)
def test_a_broken_example_is_told(key: str, tmp_path: Path) -> None:
    feature, expected = RLDS[key]
    features = toy.rlds_features(toys()[0]) | {key: feature}
    file = tmp_path / "x-train.tfrecord-00000-of-00001"
    file.write_bytes(toy.record(toy.example({name: it for name, it in features.items() if it is not None})))
    message = message_of(tmp_path)
    for text in (str(file), "record at byte 0", *expected):
        assert text in message


def test_a_picture_cut_off_in_the_middle_is_told(tmp_path: Path) -> None:
    one = toys()[0]
    pictures = [toy.encoded(it, "PNG") for it in one.frames["wrist"]]
    pictures[3] = pictures[3][:60]  # the header is whole
    features = toy.rlds_features(one) | {"steps/observation/wrist_image": toy.bytes_feature(pictures)}
    (tmp_path / "x-train.tfrecord-00000-of-00001").write_bytes(toy.record(toy.example(features)))
    assert "wrist_image, row 3: cannot be read as a picture" in message_of(tmp_path)


def test_a_wrong_checksum_stops_the_iteration(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "data", toys())
    file = root / "1.0.0" / "libero_toy-train.tfrecord-00001-of-00002"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    message = message_of(root)
    assert str(file) in message
    assert "the checksum of the data does not fit" in message


def test_a_shard_that_is_missing_is_told(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "data", toys(), shards=3)
    (root / "1.0.0" / "libero_toy-train.tfrecord-00001-of-00003").unlink()
    assert "shard 00001 is the first that is missing" in message_of(root)


def test_a_shard_that_lost_its_last_record_is_told(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "data", toys(), shards=2)
    file = root / "1.0.0" / "libero_toy-train.tfrecord-00001-of-00002"
    other = (
        toy.write_rlds(tmp_path / "other", toys()[:5], shards=1) / "1.0.0" / "libero_toy-train.tfrecord-00000-of-00001"
    )
    shutil.copy(other, file)
    message = message_of(root)
    assert f"{file}: must hold as many episodes as dataset_info.json says" in message
    assert "5, and 3 there" in message


def edit_info(root: Path, change: Callable[[dict], object]) -> None:
    file = root / "meta" / "info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def edit_table(file: Path, change: Callable) -> None:
    pq.write_table(change(pq.read_table(file)), file)


LEROBOT: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "version": (
        lambda root: edit_info(root, lambda it: it.update(codebase_version="v1.6")),
        ["codebase_version: unknown version", "'v1.6'", "v2.0, v2.1, v3.0"],
    ),
    "no wrist": (
        lambda root: edit_info(root, lambda it: it["features"].pop("observation.images.image2")),
        ["no column for wrist", "observation.images.wrist_image"],
    ),
    "no action": (
        lambda root: edit_info(root, lambda it: it["features"].pop("action")), ["no column for action"],
    ),
    "a width that is no list": (
        lambda root: edit_info(root, lambda it: it["features"]["action"].update(shape=7)),
        ["features.action.shape: wrong shape", "found    7", "[7]"],
    ),
    "template": (
        lambda root: edit_info(root, lambda it: it.update(data_path="{nonsense}")), ["data_path: is no template"],
    ),
    "no JSON": (lambda root: (root / "meta" / "info.json").write_text("{"), ["info.json: cannot be read as JSON"]),
    "no data": (lambda root: shutil.rmtree(root / "data"), ["file-000.parquet: is missing"]),
    "cut off": (
        lambda root: (root / "data/chunk-000/file-001.parquet").write_bytes(b"PAR1 and no more"),
        ["file-001.parquet: cannot be read as parquet"],
    ),
    "too few rows": (
        lambda root: edit_table(root / "data/chunk-000/file-001.parquet", lambda table: table.slice(0, 5)),
        ["file-001.parquet: has too few rows", "found    5"],
    ),
    "other rows": (
        lambda root: pq.write_table(
            pq.read_table(root / "data/chunk-000/file-001.parquet").slice(0, 21),
            root / "data/chunk-000/file-000.parquet",
        ),
        ["episode 0: rows 0 to 11 must be of this episode"],
    ),
    "rows of no episode": (
        lambda root: edit_table(root / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(1)),
        ["file-000.parquet: has rows of no listed episode", "found    21 rows", "9, as meta/episodes says"],
    ),
    "an episode that is not listed, with its file": (
        lambda root: edit_table(root / "meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(0, 2)),
        ["info.json: total_episodes: the metadata must list all episodes", "found    6, but meta/ lists 2"],
    ),
    "a file that is not listed": (
        lambda root: shutil.copy(root / "data/chunk-000/file-001.parquet", root / "data/chunk-000/file-002.parquet"),
        ["file-002.parquet: is of no listed episode", "remove the file"],
    ),
    "rows in another order": (
        lambda root: edit_table(
            root / "data/chunk-000/file-000.parquet", lambda table: table.take([0, 2, 1, *range(3, 21)])
        ),
        ["episode 0: rows must be in the order of frame_index", "found    frame_index 2 in row 1"],
    ),
    "no text of a task": (
        lambda root: edit_table(
            root / "meta/tasks.parquet", lambda table: table.set_column(1, "task", [[None, "pick up the red bowl"]])
        ),
        ["episode 0: has no instruction"],
    ),
    "an empty cell": (
        lambda root: edit_table(
            root / "meta/episodes/chunk-000/file-000.parquet",
            lambda table: table.set_column(0, "episode_index", [[0, None, 2, 3, 4, 5]]),
        ),
        ["file-000.parquet: episode_index: must hold numbers", "[0, None, 2, 3, 4]"],
    ),
    "no column": (
        lambda root: edit_table(root / "data/chunk-000/file-000.parquet", lambda table: table.drop_columns("action")),
        ["file-000.parquet: action: is missing"],
    ),
    "size": (
        lambda root: edit_info(
            root, lambda it: [it["features"][toy.LEROBOT_KEYS[key]].update(shape=[64, 64, 3]) for key in CAMERAS]
        ),
        ["pictures must have the size of meta/info.json", "(32, 32, 3)", "(64, 64, 3)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEROBOT)
def test_a_broken_lerobot_data_set_is_told(name: str, tmp_path: Path) -> None:
    damage, expected = LEROBOT[name]
    root = toy.write_lerobot_v3(tmp_path / "data", toys())
    damage(root)
    message = message_of(root)
    for text in expected:
        assert text in message


def edit_lines(file: Path, change: Callable[[list[dict]], list[dict]]) -> None:
    lines = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("\n".join(map(json.dumps, lines)))


LEROBOT_V2: dict[str, tuple[str, Callable[[list[dict]], list[dict]], list[str]]] = {
    "a shorter episode than its file": (
        "episodes.jsonl",
        lambda lines: [{**lines[0], "length": 10}, *lines[1:]],
        ["000000.parquet: has rows of no listed episode", "found    12 rows", "10, as meta/episodes.jsonl says"],
    ),
    "a line that is lost": (
        "episodes.jsonl", lambda lines: lines[:-1], ["total_episodes", "found    6, but meta/ lists 5"],
    ),
    "a task without a text": (
        "tasks.jsonl", lambda lines: [{"task_index": line["task_index"]} for line in lines],
        ["episode 0: has no instruction"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEROBOT_V2)
def test_metadata_that_do_not_fit_the_data_are_told(name: str, tmp_path: Path) -> None:
    file, change, expected = LEROBOT_V2[name]
    root = toy.write_lerobot_v2(tmp_path / "data", toys())
    edit_lines(root / "meta" / file, change)
    message = message_of(root)
    for text in expected:
        assert text in message


def test_a_file_of_lerobot_v2_that_is_not_listed_is_told(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys())
    edit_lines(root / "meta" / "episodes.jsonl", lambda lines: lines[:-1])
    edit_info(root, lambda it: it.update(total_episodes=5))
    assert "episode_000005.parquet: is of no listed episode" in message_of(root)


def test_shards_of_two_builds_in_one_folder_are_told(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "data", toys(), shards=2)
    other = toy.write_rlds(tmp_path / "other", toys(), shards=1)
    shutil.copy(other / "1.0.0" / "libero_toy-train.tfrecord-00000-of-00001", root / "1.0.0")
    message = message_of(root)
    assert "a folder holds the shards of one data set" in message
    assert "libero_toy-train.tfrecord-00000-of-00001, libero_toy-train.tfrecord-00000-of-00002" in message


def test_one_shard_of_several_asks_for_the_folder(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "data", toys(), shards=2)
    message = message_of(root / "1.0.0" / "libero_toy-train.tfrecord-00000-of-00002")
    assert "a data set of 2 shards needs all of them" in message
    assert f"name the folder, {root / '1.0.0'}" in message


def test_a_prompt_that_is_empty_is_told(tmp_path: Path) -> None:
    toy.write_hdf5(tmp_path, toys()[:1])
    (tmp_path / FILE).rename(tmp_path / "_demo.hdf5")
    assert "data/demo_0: has no instruction" in message_of(tmp_path)


def test_rows_that_are_missing_are_told_before_an_episode_is_read(tmp_path: Path) -> None:
    root = toy.write_lerobot_v3(tmp_path / "data", toys())
    edit_table(root / "data/chunk-000/file-001.parquet", lambda table: table.slice(0, 5))
    with pytest.raises(DemosError, match="has too few rows"):
        open_demos(root)


def test_a_video_that_ends_early_is_told(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys(), kind="video")
    file = root / "videos/chunk-000/observation.images.image/episode_000001.mp4"
    toy.write_video(file, toys()[1].frames["agentview"][:4], 20)
    message = message_of(root)
    assert f"{file}: frame 4 of the episode at 0 s: the video ends before the episode" in message


def test_a_video_at_another_rate_is_told(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys(), kind="video")
    file = root / "videos/chunk-000/observation.images.image/episode_000000.mp4"
    toy.write_video(file, toys()[0].frames["agentview"], 8)
    message = message_of(root)
    assert "frame 1 of the episode at 0 s: no frame at the time of the row" in message
    assert "`fps` in meta/info.json" in message


def test_a_video_that_is_none_is_told(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys(), kind="video")
    (root / "videos/chunk-000/observation.images.image/episode_000000.mp4").write_bytes(b"nothing" * 100)
    assert "cannot be decoded" in message_of(root)
    (root / "videos/chunk-000/observation.images.image/episode_000000.mp4").unlink()
    assert "episode_000000.mp4: is missing" in message_of(root)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], ["unknown format", "an empty folder", "LIBERO's HDF5 files", "RLDS", "LeRobot"]),
        (["a.txt"], ["unknown format", "a.txt"]),
    ],
)
def test_a_folder_of_no_known_format_is_told(content: list[str], expected: list[str], tmp_path: Path) -> None:
    for name in content:
        (tmp_path / name).touch()
    message = message_of(tmp_path)
    for text in expected:
        assert text in message


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "does not exist" in message_of(tmp_path / "gone")
    (tmp_path / "a.zip").touch()
    assert "unknown format" in message_of(tmp_path / "a.zip")


def test_a_folder_of_several_data_sets_asks_for_one(tmp_path: Path) -> None:
    for name in ("libero_goal", "libero_spatial"):
        toy.write_hdf5(tmp_path / name, toys()[:3])
    message = message_of(tmp_path)
    assert "holds several data sets" in message
    assert f"name one of them: {tmp_path / 'libero_goal'}" in message


@pytest.mark.parametrize("options", [{"gripper": "sign"}, {"rotated": "yes"}])
def test_an_option_that_does_not_exist_is_told(options: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; choose from"):
        open_demos(toy.write_hdf5(tmp_path, toys()), **options)


@pytest.mark.parametrize(
    ("package", "write"),
    [("h5py", toy.write_hdf5), ("pyarrow", toy.write_lerobot_v3), ("av", None)],
)
def test_a_package_that_is_missing_comes_with_the_command(package, write, tmp_path: Path, monkeypatch) -> None:
    write = write or (lambda root, them: toy.write_lerobot_v2(root, them, kind="video"))
    root = write(tmp_path / "data", toys())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}, which is not installed: pip install 'vla-rl\[demos\]'"):
        use_all(root)
