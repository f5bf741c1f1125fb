"""Attributes of written files: other programs find the episodes by them, and we do not take our files for raw ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import toy_demos as toy
from numpy.typing import NDArray
from test_demo_formats import FORMATS
from toy_demos import toys

from vla_rl.demos import open_demos
from vla_rl.demos.conversion import convert_demos

NAMES = [f"{task}_demo.hdf5" for task in toy.TASKS]
ROWS = {"demo_0": 12, "demo_2": 9, "demo_10": 14}  # of the toys of each task


def sequences(file: Path, length: int) -> list[NDArray[np.float64]]:
    """Cut a file into sequences of actions by the rules of robomimic's `SequenceDataset`.

    Demonstrations come in the order of their numbers, and have the length that their attribute says; every row begins a
    sequence, and the last row is repeated where an episode ends.
    """
    found = []
    with h5py.File(file) as handle:
        for name in sorted(handle["data"], key=lambda it: int(it[5:])):
            rows = int(handle[f"data/{name}"].attrs["num_samples"])
            actions = handle[f"data/{name}/actions"][()]
            found += [actions[np.minimum(np.arange(row, row + length), rows - 1)] for row in range(rows)]
        assert handle["data"].attrs["total"] == len(found)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_the_rows_of_every_format_are_counted(name: str, tmp_path: Path) -> None:
    convert_demos(open_demos(FORMATS[name][0](tmp_path / "data", toys())), tmp_path / "out")
    files = list((tmp_path / "out").iterdir())
    assert len(files) == 2
    for file in files:
        with h5py.File(file) as handle:
            demos = handle["data"].values()
            assert sorted(demo.attrs["num_samples"] for demo in demos) == [9, 12, 14]
            assert handle["data"].attrs["total"] == 35
            assert all(("init_state" in demo.attrs) == ("states" in demo) for demo in demos)
        assert len(sequences(file, 8)) == 35


def test_others_find_the_actions_of_a_converted_raw_file(tmp_path: Path) -> None:
    """Rows 0 to 11 are those of `demo_0`; row 20, the last of `demo_2`, is repeated to the end of its sequence."""
    convert_demos(open_demos(toy.write_hdf5(tmp_path / "data", toys(), raw=True)), tmp_path / "out")
    found = sequences(tmp_path / "out" / NAMES[1], 8)
    of_second_task = toys()[3:]
    np.testing.assert_array_equal(found[0], of_second_task[0].actions[:8])
    np.testing.assert_array_equal(found[12], of_second_task[1].actions[:8])
    np.testing.assert_array_equal(found[20], np.repeat(of_second_task[1].actions[-1:], 8, axis=0))
    np.testing.assert_array_equal(found[21], of_second_task[2].actions[:8])


def test_a_converted_raw_file_names_its_task_and_its_first_state(tmp_path: Path) -> None:
    """The action of the first raw row has no picture, so the first state is that of the second row."""
    root = toy.write_hdf5(tmp_path / "data", toys(), raw=True)
    with h5py.File(root / NAMES[1], "r+") as file:
        file["data"].attrs["bddl_file_name"] = "bddl_files/libero_spatial/a.bddl"
        file["data/demo_2/states"][:, 0] = np.arange(10)
    convert_demos(open_demos(root), tmp_path / "out")
    with h5py.File(tmp_path / "out" / NAMES[1]) as file:
        data = file["data"]
        assert json.loads(data.attrs["env_args"]) == {"env_kwargs": {"control_freq": 20}}
        assert json.loads(data.attrs["problem_info"]) == {"language_instruction": "another sentence"}
        assert data.attrs["bddl_file_name"] == "bddl_files/libero_spatial/a.bddl"
        assert {name: demo.attrs["num_samples"] for name, demo in data.items()} == ROWS
        assert data["demo_2"].attrs["init_state"].tolist() == [1.0] + [0.0] * 29
        assert "model_file" not in data["demo_2"].attrs


@pytest.mark.parametrize("raw", [True, False])
def test_our_own_files_are_aligned_with_and_without_the_attributes(tmp_path: Path, raw: bool) -> None:
    """Files of an earlier checkout have only the attribute that says how they were made."""
    convert_demos(open_demos(toy.write_hdf5(tmp_path / "data", toys(), raw=raw)), tmp_path / "out")
    before = contents(tmp_path / "out")
    for name in NAMES:
        with h5py.File(tmp_path / "out" / name, "r+") as file:
            for group in (file["data"], *file["data"].values()):
                for attribute in set(group.attrs) - {"vla_rl_source"}:
                    del group.attrs[attribute]
    assert before == contents(tmp_path / "out")
    assert [rows for _, _, rows, _ in before] == [12, 9, 14] * 2
    assert {lag for *_, lag in before} == {0}


def contents(root: Path) -> list[tuple[Any, ...]]:
    demos = open_demos(root)
    assert demos.format == "libero_hdf5_regenerated"
    return [
        (
            (it.task, it.number, it.instruction),
            tuple(values.tobytes() for values in (it.actions, it.state, it.frames["agentview"], it.frames["wrist"])),
            len(it),
            it.stored.lag,
        )
        for it in demos
    ]
