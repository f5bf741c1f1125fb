"""`vla-rl demos inspect`: what a data set is, and what to know of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import toy_demos as toy
from PIL import Image
from toy_demos import toys
from typer.testing import CliRunner, Result

from vla_rl.cli.main import app
from vla_rl.demos import action_statistics, open_demos
from vla_rl.demos.inspection import inspect_demos
from vla_rl.demos.traps import traps_of

ALL = {"rotation_declared", "small_pictures", "orientation_jumps"}  # of every toy data set: 32 pixels, random states


def demos(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["demos", *map(str, arguments)])


def found_in(path: Path, *options: str) -> dict:
    result = demos("inspect", path, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_raw_file_is_told_by_its_numbers(tmp_path: Path) -> None:
    found = found_in(toy.write_hdf5(tmp_path, toys(), raw=True))
    assert found["format"] == "libero_hdf5_raw"
    assert (found["episodes"], found["frames"], found["samples"]) == (6, 76, 70)
    assert found["tasks"] == ["turn on the stove", "pick up the red bowl"]
    assert found["image_size"] == [32, 32]
    assert (found["gripper"], found["rotated"], found["aligned"], found["no_ops"]) == ("signed", False, False, 0)
    assert found["chunk_starts"] == 2 * (12 + 9 + 14 - 3 * 7)
    assert (found["shortest"], found["longest"]) == (9, 14)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (
            lambda path, them: toy.write_hdf5(path, them, raw=True),
            {"pictures_after_actions", "first_steps_missing", "failures_not_filtered", "sentence_is_not_the_prompt"}
            | {"order_of_names", "gaps_in_numbers"},
        ),
        (toy.write_hdf5, {"order_of_names", "gaps_in_numbers"}),
        (toy.write_rlds, {"lossy_pictures"}),
        (toy.write_lerobot_v2, {"gripper_binary", "stored_statistics"}),
        (
            lambda path, them: toy.write_lerobot_v3(path, them, kind="video"),
            {"fps_is_a_label", "stored_statistics", "lossy_pictures"},
        ),
    ],
)
def test_the_traps_of_a_format_are_named_and_no_others(write, expected: set[str], tmp_path: Path) -> None:
    assert set(found_in(write(tmp_path / "data", toys()))["traps"]) == expected | ALL


def traps_with(change, tmp_path: Path, *, rows: int = 20) -> dict[str, str]:
    one = toy.toy(toy.TASKS[1], 0, rows)
    one.state[:, 3:6] = 0.5
    change(one)
    data = open_demos(toy.write_hdf5(tmp_path, [one]))
    return {trap.name: trap.text for trap in traps_of(data, inspect_demos(data))}


def test_no_ops_are_counted(tmp_path: Path) -> None:
    def change(one: toy.Toy) -> None:
        one.actions[3:6, :6] = 0

    traps = traps_with(change, tmp_path)
    assert traps["no_ops"].startswith("3 of 20 actions do nothing")
    assert "orientation_jumps" not in traps


def test_an_orientation_that_jumps_is_named(tmp_path: Path) -> None:
    def change(one: toy.Toy) -> None:
        one.state[10:, 3] = 0.5 - 3.2  # by 3.2 rad: more than pi

    assert traps_with(change, tmp_path)["orientation_jumps"].startswith("in 1 rows")


@pytest.mark.parametrize("inverted", [False, True])
def test_a_gripper_whose_sign_contradicts_the_fingers_is_named(inverted: bool, tmp_path: Path) -> None:
    """Fingers of an open hand are at +0.04 and -0.04 m; the toy commands to close from row 10 on."""

    def change(one: toy.Toy) -> None:
        one.state[:, 6] = np.where((np.arange(20) <= 10) != inverted, 0.04, 0.002)
        one.state[:, 7] = -one.state[:, 6]

    traps = traps_with(change, tmp_path)
    assert ("gripper_contradicts_fingers" in traps) == inverted
    if inverted:
        assert (
            "80 mm apart after commands to close and 4 mm after those to open" in traps["gripper_contradicts_fingers"]
        )


def test_large_and_constant_actions_are_named(tmp_path: Path) -> None:
    def change(one: toy.Toy) -> None:
        one.actions[4, 0] = 1.5
        one.actions[:, 2] = 0.25

    traps = traps_with(change, tmp_path)
    assert traps["large_actions"].startswith("in 1 rows")
    assert traps["constant_components"].startswith("components 2 of")


def test_a_component_that_moves_once_in_many_rows_is_not_called_constant(tmp_path: Path) -> None:
    """Its quantiles are equal, but training scales it to 0 only if it never moves."""

    def change(one: toy.Toy) -> None:
        one.actions[:, 2] = 0.25
        one.actions[0, 2] = 0.5

    assert "constant_components" not in traps_with(change, tmp_path, rows=120)


def test_an_episode_without_a_whole_chunk_is_named(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, [toy.toy(toy.TASKS[1], 0, 7), toy.toy(toy.TASKS[1], 1, 8)])
    found = found_in(root)
    assert found["chunk_starts"] == 1
    assert found["traps"]["short_episodes"].startswith("1 episodes have fewer than 8 rows")


def test_an_incomplete_copy_of_the_published_data_is_named(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "libero_goal_no_noops", toys())
    assert "has 428 with 52,042" in found_in(root)["traps"]["not_the_published_set"]


def test_a_sentence_that_is_the_prompt_is_not_named(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path, toys(), raw=True)
    with h5py.File(root / f"{toy.TASKS[0]}_demo.hdf5", "r+") as file:
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "Turn on the stove"})
    text = found_in(root)["traps"]["sentence_is_not_the_prompt"]
    assert text.startswith("in 1 of 2 files")
    assert '"pick up the red bowl", not "another sentence"' in text


def test_one_prompt_in_two_scenes_is_named(tmp_path: Path) -> None:
    for scene in (1, 2):
        root = toy.write_hdf5(tmp_path / str(scene), [toy.toy(toy.TASKS[1], 0, 9)])
        (root / f"{toy.TASKS[1]}_demo.hdf5").rename(tmp_path / f"KITCHEN_SCENE{scene}_do_it_demo.hdf5")
    assert found_in(tmp_path)["traps"]["one_prompt_several_tasks"].startswith("2 tasks share 1 prompts")


def test_the_statistics_are_those_of_the_episodes(tmp_path: Path) -> None:
    root = toy.write_lerobot_v2(tmp_path / "data", toys())
    assert found_in(root)["statistics"] == action_statistics(open_demos(root))


def test_options_declare_what_numbers_do_not_tell(tmp_path: Path) -> None:
    root = toy.write_rlds(tmp_path / "data", toys())
    assert found_in(root)["rotated"] is True
    found = found_in(root, "--rotated", "no")
    assert found["rotated"] is False
    assert "the option says it" in found["traps"]["rotation_declared"]
    assert demos("inspect", root, "--gripper", "binary").exit_code == 2


def test_people_read_a_table(tmp_path: Path) -> None:
    result = demos("inspect", toy.write_hdf5(tmp_path, toys(), raw=True))
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert "format libero_hdf5_raw" in lines
    assert "gripper signed in the files (-1 open, +1 close)" in lines
    assert "3 turn on the stove" in lines
    assert any(line.startswith("action gripper 0.4857") for line in lines)  # 34 of 70 rows are open
    assert any(line.startswith("pictures_after_actions: pictures were taken after") for line in lines)


def test_the_sheet_holds_first_and_last_pictures_as_a_policy_sees_them(tmp_path: Path) -> None:
    root = toy.write_hdf5(tmp_path / "data", toys())
    sheet = tmp_path / "new" / "sheet.png"
    result = demos("inspect", root, "--out", sheet)
    assert result.exit_code == 0, result.output
    assert str(sheet) in result.output
    pixels = np.asarray(Image.open(sheet))
    for row, one in enumerate((toys()[0], toys()[3])):  # of each task the first
        for column, (camera, shown) in enumerate([("agentview", 0), ("agentview", -1), ("wrist", 0), ("wrist", -1)]):
            top, left = 8 + 18 + row * (18 + 160 + 8), 8 + column * (160 + 8)
            thumbnail = pixels[top : top + 160, left : left + 160]
            for y, x in ((20, 20), (20, 140), (140, 20), (140, 140)):  # the middles of the four blocks
                np.testing.assert_array_equal(thumbnail[y, x], one.frames[camera][shown][y // 5, x // 5])
    assert [it.name for it in sheet.parent.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(("name", "written"), [("sheet.jpg", "JPEG"), ("sheet.JPEG", "JPEG"), ("sheet.PNG", "PNG")])
def test_a_sheet_has_the_format_that_its_suffix_names(tmp_path: Path, name: str, written: str) -> None:
    result = demos("inspect", toy.write_hdf5(tmp_path / "data", toys()), "--out", tmp_path / name)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / name) as sheet:
        assert sheet.format == written


@pytest.mark.parametrize(("name", "advised"), [("my sheet.gif", "'{}/my sheet.png'"), ("sheet", "{}/sheet.png")])
def test_a_sheet_of_another_format_is_refused_before_the_data_are_read(tmp_path: Path, name: str, advised: str) -> None:
    result = demos("inspect", tmp_path / "no such data", "--out", tmp_path / name)
    assert result.exit_code == 2
    assert f"--out: expected a name that ends in .png, .jpg, .jpeg, found {tmp_path / name}." in result.stderr
    assert result.stderr.endswith(f"Write {advised.format(tmp_path)}\n")
    assert not list(tmp_path.iterdir())


def test_a_sheet_below_a_file_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = demos("inspect", toy.write_hdf5(tmp_path / "data", toys()), "--out", tmp_path / "file" / "sheet.png")
    assert result.exit_code == 2
    assert f"error: --out: {tmp_path / 'file'} cannot be made" in result.stderr


def test_a_sheet_without_all_tasks_says_so(tmp_path: Path) -> None:
    episodes = [replace(toys()[0], task=f"do_task_{number}") for number in range(22)]
    result = demos("inspect", toy.write_hdf5(tmp_path / "data", episodes), "--out", tmp_path / "sheet.png")
    assert f"as a policy sees them (20 of 22 tasks): {tmp_path / 'sheet.png'}" in result.output


def test_broken_data_are_one_message(tmp_path: Path) -> None:
    result = demos("inspect", tmp_path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path}: unknown format\n    found    an empty folder\n    allowed  ")
