"""The same toy episodes, written in every format, are the same samples."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy_demos as toy
from toy_demos import Toy, toys

from vla_rl.demos import DemosError, open_demos

# How far a picture may be from what was drawn, in grey levels: JPEG and video are lossy.
LOSSLESS, JPEG, VIDEO = 0, 6, 12
Write = Callable[[Path, list[Toy]], Path]

FORMATS: dict[str, tuple[Write, str, int]] = {
    "raw": (lambda path, them: toy.write_hdf5(path, them, raw=True), "libero_hdf5_raw", LOSSLESS),
    "regenerated": (toy.write_hdf5, "libero_hdf5_regenerated", LOSSLESS),
    "rlds": (toy.write_rlds, "rlds", JPEG),
    "v2.1 of IPEC": (toy.write_lerobot_v2, "lerobot_v2.1", LOSSLESS),
    "v2.0 of openpi": (
        lambda path, them: toy.write_lerobot_v2(path, them, keys=toy.OPENPI_KEYS, binary=False, version="v2.0"),
        "lerobot_v2.0",
        LOSSLESS,
    ),
    "v2.1 with videos": (
        lambda path, them: toy.write_lerobot_v2(path, them, kind="video"), "lerobot_v2.1", VIDEO,
    ),
    "v3.0 with pictures": (toy.write_lerobot_v3, "lerobot_v3.0", LOSSLESS),
    "v3.0 with videos": (
        lambda path, them: toy.write_lerobot_v3(path, them, kind="video", named_index=False), "lerobot_v3.0", VIDEO,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    write, format_name, tolerance = FORMATS[name]
    drawn = toys()
    demos = open_demos(write(tmp_path / "data", drawn))
    assert demos.format == format_name
    assert len(demos) == 6
    episodes = list(demos)
    assert [len(episode) for episode in episodes] == [12, 9, 14, 12, 9, 14]
    for episode, one in zip(episodes, drawn, strict=True):
        assert episode.instruction == one.prompt
        assert episode.actions.dtype == episode.state.dtype == np.float32
        np.testing.assert_array_equal(episode.actions, one.actions)
        np.testing.assert_array_equal(episode.state, one.state)
        assert set(episode.frames) == {"agentview", "wrist"}
        for camera, frames in episode.frames.items():
            assert frames.dtype == np.uint8
            assert frames.shape == (len(one), toy.SIZE, toy.SIZE, 3)
            off = np.abs(frames.astype(int) - one.frames[camera].astype(int))
            assert np.percentile(off, 90) <= tolerance, camera


@pytest.mark.parametrize("name", FORMATS)
def test_a_single_picture_is_the_one_of_its_row(name: str, tmp_path: Path) -> None:
    write, _, _ = FORMATS[name]
    episode = open_demos(write(tmp_path / "data", toys()))[4]
    for camera in ("agentview", "wrist"):
        for row in (0, 5, -1):
            np.testing.assert_array_equal(episode.frame(camera, row), episode.frames[camera][row])
        np.testing.assert_array_equal(episode.pictures(camera, [1, 4, 7]), episode.frames[camera][[1, 4, 7]])


@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_knows_its_files_from_those_beside_them(name: str, tmp_path: Path) -> None:
    write, _, _ = FORMATS[name]
    folder = write(tmp_path / "data", toys())
    written = {file for file in folder.rglob("*") if file.is_file() and file.name != "dataset_info.json"}
    (folder / "frames").mkdir()
    (folder / "frames" / "frames.bin").touch()
    assert set(open_demos(folder).reader.paths) == written


@pytest.mark.parametrize("name", FORMATS)
def test_no_ops_are_left_out_by_the_same_rule_in_every_format(name: str, tmp_path: Path) -> None:
    """By hand: rows 0, 1, 4 and 7 do nothing (two of them before anything was kept); row 6 moves the gripper."""
    one = toy.toy(toy.TASKS[1], 0, 9)
    one.actions[[0, 1, 4, 6, 7], :6] = 0
    one.actions[:, 6] = [-1, 1, -1, -1, -1, -1, 1, 1, 1]
    write, _, _ = FORMATS[name]
    root = write(tmp_path / "data", [one, *(toy.toy(toy.TASKS[1], number, 9) for number in (1, 2))])
    kept = [2, 3, 5, 6, 8]
    if name == "raw":  # its first action, which has no picture before it, was kept with the gripper at -1
        kept = [1, 2, 3, 5, 6, 8]
    episode = open_demos(root, drop_no_ops=True)[0]
    np.testing.assert_array_equal(episode.actions, one.actions[kept])
    np.testing.assert_array_equal(episode.state, one.state[kept])
    whole = open_demos(root)[0]
    np.testing.assert_array_equal(episode.frames["wrist"], whole.frames["wrist"][kept])
    assert len(whole) == 9


def test_a_block_in_the_corner_of_an_hdf5_file_lands_in_the_opposite_corner(tmp_path: Path) -> None:
    import h5py

    root = toy.write_hdf5(tmp_path, [toy.toy(toy.TASKS[1], 0, 8)])
    with h5py.File(root / f"{toy.TASKS[1]}_demo.hdf5", "r+") as file:
        pixels = np.zeros((8, toy.SIZE, toy.SIZE, 3), np.uint8)
        pixels[:, :4, :6] = (255, 0, 0)  # the upper left corner, 4 high and 6 wide
        file["data/demo_0/obs/agentview_rgb"][...] = pixels
    turned = open_demos(root)[0].frames["agentview"]
    assert (turned[:, -4:, -6:] == (255, 0, 0)).all()
    assert turned.sum() == 255 * 8 * 4 * 6
    assert (open_demos(root, rotated=True)[0].frames["agentview"][:, :4, :6] == (255, 0, 0)).all()


def test_av1_the_codec_of_lerobot_is_decoded(tmp_path: Path) -> None:
    """Its encoder wants 64 pixels at least; the second episode of the file begins at 0.5 s, not at a key frame."""
    from vla_rl.demos.videos import read_video

    frames = np.stack([toy.picture(row) for row in range(12)]).repeat(2, axis=1).repeat(2, axis=2)
    toy.write_video(tmp_path / "a.mp4", frames, 10, "libsvtav1")
    read = read_video(tmp_path / "a.mp4", begin=0.5, fps=10, rows=[0, 2, 6])
    off = np.abs(read.astype(int) - frames[[5, 7, 11]].astype(int))
    assert read.shape == (3, 64, 64, 3)
    assert np.percentile(off, 90) <= VIDEO


def test_a_declared_rotation_holds_for_every_format(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "rlds", toys(), shards=1)
    as_is, turned = open_demos(root)[0].frames, open_demos(root, rotated=False)[0].frames
    np.testing.assert_array_equal(turned["wrist"], as_is["wrist"][:, ::-1, ::-1])


def test_numbers_tell_alignment_where_attributes_are_gone(tmp_path: Path) -> None:
    """States of the row before, joints of the picture: in raw files a picture has the joints of the next state."""
    import h5py

    root = toy.write_hdf5(tmp_path, [toy.toy(toy.TASKS[1], 0, 9)], raw=True, attributes=False)
    file = root / f"{toy.TASKS[1]}_demo.hdf5"
    assert open_demos(root).format == "libero_hdf5_regenerated"
    assert len(open_demos(root)[0]) == 10
    with h5py.File(file, "r+") as handle:
        motion = np.linspace(0, 1, 11)[:, None] * np.ones(7)
        handle["data/demo_0/states"][:, 1:8] = motion[:-1]
        handle["data/demo_0/obs/joint_states"][...] = motion[1:] - 0.004
    assert len(open_demos(root)[0]) == 9
    with h5py.File(file, "r+") as handle:
        handle["data/demo_0/obs/joint_states"][...] = motion[:-1] - 0.004
    assert len(open_demos(root)[0]) == 10


def test_files_and_demonstrations_come_by_number(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys())
    assert [(it.task, it.number) for it in open_demos(root)] == [
        (task, number) for task in toy.TASKS for number in (0, 2, 10)
    ]


def test_a_data_set_can_be_iterated_twice(tmp_path: Path) -> None:
    demos = open_demos(toy.write_hdf5(tmp_path, toys()))
    assert [it.number for it in demos] == [it.number for it in demos] == [0, 2, 10] * 2


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("pick_up_the_milk_demo.hdf5", "pick up the milk"),
        ("LIVING_ROOM_SCENE12_Put_the_Red_mug_on_it_demo.hdf5", "put the red mug on it"),
        ("open_the_top_drawer.hdf5", "open the top drawer"),
    ],
)
def test_the_prompt_is_made_of_the_words_after_the_scene(name: str, prompt: str) -> None:
    from vla_rl.demos.conventions import instruction_of_task, task_of_file

    assert instruction_of_task(task_of_file(Path(name))) == prompt


def test_hidden_files_and_unfinished_downloads_beside_the_data_are_passed_over(tmp_path: Path) -> None:
    hdf5 = toy.write_hdf5(tmp_path / "hdf5", toys())
    (hdf5 / f"._{toy.TASKS[0]}_demo.hdf5").write_bytes(b"what macOS writes")
    assert len(open_demos(hdf5)) == 6
    rlds = toy.write_rlds(tmp_path / "rlds", toys())
    (rlds / "1.0.0" / "libero_toy-train.tfrecord-00000-of-00002.incomplete").write_bytes(b"half")
    assert len(open_demos(rlds)) == 6


def test_the_only_data_set_of_a_collection_is_found_in_it(tmp_path: Path) -> None:
    toy.write_rlds(tmp_path / "collection" / "libero_toy_no_noops", toys())
    assert len(open_demos(tmp_path / "collection")) == 6
    toy.write_rlds(tmp_path / "collection" / "libero_other_no_noops", toys())
    with pytest.raises(DemosError, match="holds several data sets") as raised:
        open_demos(tmp_path / "collection")
    assert f"name one of them: {tmp_path / 'collection' / 'libero_other_no_noops'}" in str(raised.value)


def test_the_metadata_of_a_lerobot_data_set_stand_for_its_folder(tmp_path: Path) -> None:
    """Prepared frames and statistics are named after the path, and depend on every file below it."""
    root = toy.write_lerobot_v3(tmp_path / "mine", toys())
    found = open_demos(root / "meta" / "info.json")
    assert (found.path, len(found)) == (root, 6)


def test_an_instruction_with_any_character_is_one_line_of_the_metadata(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys()[:1])
    text = "Öffne\u2028die Tür"  # a line separator to str.splitlines, a character as any other to JSON
    line = json.dumps({"task_index": 0, "task": text}, ensure_ascii=False)
    (root / "meta" / "tasks.jsonl").write_text(line, encoding="utf-8")
    assert open_demos(root)[0].instruction == text.lower()


def test_the_names_of_axes_tell_the_size_of_a_picture(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys()[:1])
    info = json.loads((root / "meta" / "info.json").read_text())
    for feature in (info["features"][key] for key in info["features"] if "image" in key):
        feature |= {"shape": [3, toy.SIZE, toy.SIZE], "names": ["channels", "height", "width"]}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    assert open_demos(root)[0].frames["wrist"].shape == (12, toy.SIZE, toy.SIZE, 3)
    for feature in (info["features"][key] for key in info["features"] if "image" in key):
        feature |= {"shape": [3, toy.SIZE, 3], "names": ["channels", "height", "width"]}
    (root / "meta" / "info.json").write_text(json.dumps(info))
    assert open_demos(root)[0].stored.image_size == (toy.SIZE, 3)


def test_a_lone_file_is_a_data_set(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys())
    assert len(open_demos(root / f"{toy.TASKS[0]}_demo.hdf5")) == 3
    lone = toy.write_rlds(tmp_path / "rlds", toys(), shards=1) / "1.0.0" / "libero_toy-train.tfrecord-00000-of-00001"
    assert len(open_demos(str(lone))) == 6


@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_can_be_handed_to_another_process(name: str, tmp_path: Path) -> None:
    """Nothing that is open is kept, so that what arrives there reads for itself."""
    write, _, _ = FORMATS[name]
    demos = open_demos(write(tmp_path / "data", toys()))
    episode, arrived = demos[1], pickle.loads(pickle.dumps(demos))[1]
    np.testing.assert_array_equal(arrived.actions, episode.actions)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(episode)).frame("wrist", 3), arrived.frame("wrist", 3))
