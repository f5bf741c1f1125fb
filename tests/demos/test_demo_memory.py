"""Memory holds one episode, whatever the size of the data set."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import toy_demos as toy

from vla_rl.demos import action_statistics, open_demos

EPISODES, ROWS, SIDE = 24, 40, 256
EPISODE_BYTES = 2 * ROWS * SIDE * SIDE * 3  # both cameras: 15.7 MB; the data set has 377 MB


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Chunks that were never written take no place on the disk, and are read as zeros."""
    with h5py.File(tmp_path / "pick_up_the_milk_demo.hdf5", "w") as file:
        for number in range(EPISODES):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"] = np.tile([0.1] * 6 + [-1.0], (ROWS, 1))
            demo["obs/ee_states"], demo["obs/gripper_states"] = np.zeros((ROWS, 6)), np.zeros((ROWS, 2))
            for camera in ("agentview_rgb", "eye_in_hand_rgb"):
                shape = (ROWS, SIDE, SIDE, 3)
                demo.create_dataset(f"obs/{camera}", shape, np.uint8, chunks=(1, *shape[1:]))
    assert (tmp_path / "pick_up_the_milk_demo.hdf5").stat().st_size < EPISODE_BYTES
    return tmp_path


def test_an_iteration_holds_the_pictures_of_one_episode(large: Path) -> None:
    tracemalloc.start()
    try:
        total = sum(frames.nbytes for episode in open_demos(large) for frames in episode.frames.values())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == EPISODES * EPISODE_BYTES
    assert EPISODE_BYTES < peak < 3 * EPISODE_BYTES  # one that is let go, one that is read and turned


def test_statistics_read_no_pictures(large: Path) -> None:
    tracemalloc.start()
    try:
        entry = action_statistics(open_demos(large))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert entry["num_transitions"] == EPISODES * ROWS
    assert peak < EPISODE_BYTES / 4


def test_records_are_read_one_by_one(tmp_path: Path) -> None:
    """A folder of 60 records of 1 MB: what is held is a few of them at most."""
    one = toy.toys()[0]
    features = toy.rlds_features(one) | {"padding": toy.bytes_feature([bytes(1_000_000)])}
    content = toy.record(toy.example(features))
    with (tmp_path / "x-train.tfrecord-00000-of-00001").open("wb") as file:
        for _ in range(60):
            file.write(content)
    demos = open_demos(tmp_path)
    next(iter(demos))  # the tables of the checksum are made once
    tracemalloc.start()
    try:
        assert sum(len(episode) for episode in demos) == 60 * len(one)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(content)
