"""`vla-rl demos convert`: every format as files of one layout."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import toy_demos as toy
from test_demo_formats import FORMATS
from toy_demos import toys
from typer.testing import CliRunner, Result

from vla_rl.cli.main import app
from vla_rl.demos import DemosError, open_demos
from vla_rl.demos.conversion import Converted, convert_demos
from vla_rl.demos.episode import Episode
from vla_rl.run.folder_lock import claim_folder

NAMES = [f"{task}_demo.hdf5" for task in toy.TASKS]


def convert(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(app, ["demos", "convert", *map(str, arguments)])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    source = open_demos(FORMATS[name][0](tmp_path / "data", toys()))
    convert_demos(source, tmp_path / "out")
    written = open_demos(tmp_path / "out")
    assert written.format == "libero_hdf5_regenerated"
    read = {(it.instruction, len(it)): it for it in source}
    assert len(written) == len(read) == 6
    for episode in written:
        before = read[episode.instruction, len(episode)]
        np.testing.assert_array_equal(episode.actions, before.actions)
        np.testing.assert_array_equal(episode.state, before.state)
        for camera in ("agentview", "wrist"):
            np.testing.assert_array_equal(episode.frames[camera], before.frames[camera])


@pytest.mark.parametrize("rows", [5, 13])
def test_states_of_another_length_than_the_episode_are_told(rows: int, tmp_path: Path) -> None:
    folder = toy.write_hdf5(tmp_path / "data", toys())
    with h5py.File(folder / f"{toy.TASKS[1]}_demo.hdf5", "a") as file:
        del file["data/demo_0/states"]
        file["data/demo_0/states"] = np.zeros((rows, 30))
    with pytest.raises(DemosError, match=rf"data/demo_0/states: wrong shape\n.*\({rows}, 30\)\n.*each of 12 pictures"):
        convert_demos(open_demos(folder), tmp_path / "out")


def test_the_files_have_the_layout_that_others_read(tmp_path: Path) -> None:
    """As moojink/rlds_dataset_builder reads it: keys by name, pictures turned by 180 degrees, aligned."""
    one = toys()[3]
    convert_demos(open_demos(toy.write_hdf5(tmp_path / "data", toys(), raw=True)), tmp_path / "out")
    assert sorted(it.name for it in (tmp_path / "out").iterdir()) == NAMES
    with h5py.File(tmp_path / "out" / NAMES[1]) as file:
        assert set(file["data"]) == {"demo_0", "demo_2", "demo_10"}
        demo = file["data/demo_0"]
        np.testing.assert_array_equal(demo["actions"], one.actions)
        np.testing.assert_array_equal(demo["obs"]["ee_states"], one.state[:, :6])
        np.testing.assert_array_equal(demo["obs"]["ee_ori"], one.state[:, 3:6])
        np.testing.assert_array_equal(demo["obs"]["gripper_states"], one.state[:, 6:])
        np.testing.assert_array_equal(demo["obs"]["agentview_rgb"][()][:, ::-1, ::-1], one.frames["agentview"])
        assert demo["obs"]["joint_states"].shape == (12, 7)
        assert demo["states"].shape == (12, 30)
        assert demo["rewards"][()].tolist() == demo["dones"][()].tolist() == [0] * 11 + [1]
        assert demo["actions"].dtype == demo["obs"]["ee_pos"].dtype == np.float64


def test_states_move_with_the_pictures_of_a_raw_file(tmp_path: Path) -> None:
    """The state before action j + 1 belongs to picture j; joints were observed with the picture."""
    root = toy.write_hdf5(tmp_path / "data", toys()[3:4], raw=True)
    with h5py.File(root / NAMES[1], "r+") as file:
        file["data/demo_0/states"][:, 0] = np.arange(13)
        file["data/demo_0/obs/joint_states"][:, 0] = 100 + np.arange(13)
        executed = file["data/demo_0/actions"][()] + 0.01  # what the robot did, under noise
        file["data/demo_0/executed_actions"] = executed
    convert_demos(open_demos(root), tmp_path / "out")
    with h5py.File(tmp_path / "out" / NAMES[1]) as file:
        assert file["data/demo_0/states"][:, 0].tolist() == list(range(1, 13))
        assert file["data/demo_0/obs/joint_states"][:, 0].tolist() == list(range(100, 112))
        np.testing.assert_array_equal(file["data/demo_0/executed_actions"], executed[1:])


def test_first_takes_the_lowest_numbers_of_each_task(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path / "data", toys())
    assert convert(root, "--out", tmp_path / "one", "--first", 1).exit_code == 0
    assert [(it.task, it.number) for it in open_demos(tmp_path / "one")] == [(task, 0) for task in toy.TASKS]
    assert convert(root, "--out", tmp_path / "two", "--first", 2).exit_code == 0
    assert [it.number for it in open_demos(tmp_path / "two")] == [0, 2, 0, 2]


def test_first_with_a_filter_takes_the_first_that_it_accepts_and_asks_no_further(tmp_path: Path) -> None:
    """Each task has the numbers 0, 2 and 10. Of the first task 0 is refused, of the second nothing is."""
    demos = open_demos(toy.write_hdf5(tmp_path / "data", toys()))
    asked, lines = [], []

    def keep(episode: Episode) -> bool:
        asked.append((episode.task, episode.number))
        return (episode.task, episode.number) != (toy.TASKS[0], 0)

    one = convert_demos(demos, tmp_path / "one", first=1, keep=keep, say=lines.append)
    assert [(it.task, it.number) for it in open_demos(tmp_path / "one")] == [(toy.TASKS[0], 2), (toy.TASKS[1], 0)]
    assert asked == [(toy.TASKS[0], 0), (toy.TASKS[0], 2), (toy.TASKS[1], 0)]
    assert (one.episodes, one.failed) == (2, 1)
    assert lines[1].startswith(f"1 of 2: {NAMES[0]}: 1 episodes") and lines[1].endswith("frames, 1 left out")

    three = convert_demos(demos, tmp_path / "three", first=3, keep=keep, say=lines.append)
    assert [it.number for it in open_demos(tmp_path / "three")] == [2, 10, 0, 2, 10]
    assert (three.episodes, three.failed) == (5, 1)
    assert lines[-2].endswith("1 left out, fewer than the 3 asked for")


def test_a_filtered_conversion_continues_without_asking_again_and_only_for_the_same_first(tmp_path: Path) -> None:
    demos = open_demos(toy.write_hdf5(tmp_path / "data", toys()))

    def convert_first(first: int | None, keep: Callable[[Episode], bool] | None) -> Converted:
        return convert_demos(demos, tmp_path / "out", first=first, keep=keep)

    convert_first(1, lambda episode: episode.number > 0)
    (tmp_path / "out" / NAMES[1]).unlink()  # as if it had been interrupted
    asked = []
    again = convert_first(1, lambda episode: asked.append(episode.task) or episode.number > 0)
    assert set(asked) == {toy.TASKS[1]}
    assert (again.kept, again.episodes) == (1, 2)
    assert [it.number for it in open_demos(tmp_path / "out")] == [2, 2]
    for first, keep in ((2, bool), (None, bool), (1, None)):
        with pytest.raises(DemosError, match="exists already, made from something else"):
            convert_first(first, keep)


def test_files_of_an_earlier_release_are_kept(tmp_path: Path) -> None:
    """It recorded how many episodes were chosen, and the digest of their indices: [0] and [3], of 6."""
    demos = open_demos(toy.write_hdf5(tmp_path / "data", toys()))
    convert_demos(demos, tmp_path / "out", first=1)
    for name, digest in zip(NAMES, ("d0bca111f8628137", "06d033ece6645de5"), strict=True):
        with h5py.File(tmp_path / "out" / name, "r+") as file:
            recorded = json.loads(file["data"].attrs["vla_rl_source"])
            assert recorded.pop("first") == 1
            recorded |= {"episodes": 1, "places": digest}
            file["data"].attrs["vla_rl_source"] = json.dumps(recorded)
    assert convert_demos(demos, tmp_path / "out", first=1).kept == 2


def test_no_ops_are_left_out_where_asked(tmp_path: Path) -> None:
    one = toy.toy(toy.TASKS[1], 0, 12)
    one.actions[[2, 5], :6] = 0
    root = toy.write_hdf5(tmp_path / "data", [one])
    with h5py.File(root / NAMES[1], "r+") as file:
        file["data/demo_0/robot_states"][:, 0] = np.arange(12)
    assert "1 episodes, 10 frames" in convert(root, "--out", tmp_path / "out", "--drop-no-ops").output
    assert "1 episodes, 12 frames" in convert(root, "--out", tmp_path / "all").output
    with h5py.File(tmp_path / "out" / NAMES[1]) as file:
        np.testing.assert_array_equal(file["data/demo_0/actions"], np.delete(one.actions, [2, 5], axis=0))
        assert file["data/demo_0/robot_states"][:, 0].tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]


def test_an_interrupted_conversion_goes_on(tmp_path: Path) -> None:
    """The wrist picture of the second task's last row is broken at first: its file is not there, the first one is."""
    good, bad = toys()[0], toys()[3]
    features = toy.rlds_features(bad)
    pictures = [toy.encoded(it, "PNG") for it in bad.frames["wrist"]]
    broken = features | {"steps/observation/wrist_image": toy.bytes_feature([*pictures[:-1], pictures[-1][:60]])}
    file = tmp_path / "x-train.tfrecord-00000-of-00001"
    first = toy.record(toy.example(toy.rlds_features(good)))
    file.write_bytes(first + toy.record(toy.example(broken)))
    out = tmp_path / "out"
    result = convert(tmp_path, "--out", out)
    assert result.exit_code == 2
    assert "wrist_image, row 11: cannot be read as a picture" in result.stderr
    assert [it.name for it in out.iterdir()] == NAMES[:1]
    written = (out / NAMES[0]).stat().st_mtime_ns

    file.write_bytes(first + toy.record(toy.example(features)))
    result = convert(tmp_path, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"1 of 2: {NAMES[0]}: exists already" in result.output
    assert f"2 of 2: {NAMES[1]}: 1 episodes, 12 frames" in result.output
    assert "not in the source, therefore not in the new files: robot_states, states" in result.output
    assert (out / NAMES[0]).stat().st_mtime_ns == written
    assert sorted(it.name for it in out.iterdir()) == NAMES


def test_what_a_killed_conversion_left_aside_is_removed_and_a_running_one_is_left_alone(tmp_path: Path) -> None:
    data, out = toy.write_hdf5(tmp_path / "data", toys()), tmp_path / "out"
    out.mkdir()
    left = out / f".tmp-{NAMES[1]}.4711"
    left.write_bytes(b"half")
    with claim_folder(out, option="--out"):
        result = convert(data, "--out", out)
    assert (result.exit_code, left.exists()) == (2, True)
    assert "another process is writing to" in result.stderr
    assert convert(data, "--out", out).exit_code == 0
    assert sorted(it.name for it in out.iterdir()) == NAMES


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    """A limit of file sizes stands for it, a number of an error that HDF5 meets in the same places."""
    root = toy.write_hdf5(tmp_path / "data", [toy.toy(toy.TASKS[0], 0, 60)])  # pictures of a camera: 184 kB
    done = subprocess.run(
        [sys.executable, "-m", "vla_rl", "demos", "convert", str(root), "--out", str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f"error: {tmp_path / 'out' / NAMES[0]}: File too large; raise the limit of file sizes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_file_of_something_else_is_never_written_over(tmp_path: Path) -> None:
    root, other = toy.write_hdf5(tmp_path / "data", toys()), toy.write_hdf5(tmp_path / "other", toys())
    assert convert(root, "--out", tmp_path / "out", "--first", 1).exit_code == 0
    for target, found in ((tmp_path / "out", '"first": 1'), (other, "not written by demos convert")):
        content = (target / NAMES[0]).read_bytes()
        result = convert(root, "--out", target)
        assert result.exit_code == 2
        assert "exists already, made from something else" in result.stderr
        assert found in result.stderr
        assert (target / NAMES[0]).read_bytes() == content


@pytest.mark.parametrize("write", [toy.write_hdf5, toy.write_rlds, toy.write_lerobot_v2])
def test_nothing_is_written_into_the_folder_of_the_data_set(write: Callable[..., Path], tmp_path: Path) -> None:
    """HDF5 files beside an RLDS data set would be read in its place, and a fix of `delete the file` would lose data."""
    root = write(tmp_path / "data", toys())
    read = open_demos(root)
    before = sorted(tmp_path.rglob("*"))
    for target in {root, root / ".", *(file.parent for file in read.reader.paths)}:
        result = convert(root, "--out", target)
        assert result.exit_code == 2
        assert "the data set itself is in this folder" in result.stderr
        assert "choose another folder for --out" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert open_demos(root).format == read.format


def test_a_prompt_that_is_no_file_name_is_told(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys())
    (root / "meta" / "tasks.jsonl").write_text(
        '{"task_index": 0, "task": "a/b"}\n{"task_index": 1, "task": "put it at 1.5 m"}\n'
    )
    with pytest.raises(DemosError, match="the layout stores prompts as file names") as raised:
        convert_demos(open_demos(root), tmp_path / "out")
    assert "'a/b'" in str(raised.value)
